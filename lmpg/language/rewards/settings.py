"""Settings of the `rewards` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lmpg.settings.section import Section

Truncated = Literal["score", "zero", "bootstrap", "mask", "mask_loss"]


class ScoringSettings(Section):
    """What scores responses: the weighted sum of all functions and models."""

    functions: tuple[str, ...] = ()
    """Python functions, each as `FILE.py:NAME`, `package.module:NAME` or the bare name of a
    built-in one; arguments in brackets, as in `length(target=200)`."""
    models: tuple[str, ...] = ()
    """Hub ids or folders of sequence-classification models with one label."""
    weights: tuple[float, ...] = ()
    """One per function, then one per model; empty means 1 for each."""
    timeout: float = Field(60.0, gt=0)
    """Seconds one call of a function may take before its worker process is killed."""
    workers: int = Field(1, ge=1)
    """Processes per function, which share its batches."""
    process: Literal["none", "token", "step"] = "none"
    """Whether functions may return a list of numbers per completion: one per token or step."""
    step_separator: str = Field("\n", min_length=1)
    """What ends a step of a completion where `process` is `step`."""

    @model_validator(mode="after")
    def _require_one_weight_per_reward(self) -> ScoringSettings:
        expected = len(self.functions) + len(self.models)
        if self.weights and len(self.weights) != expected:
            raise ValueError(
                f"rewards.weights has {len(self.weights)} numbers, expected {expected}: "
                "one per entry of rewards.functions, then one per entry of rewards.models"
            )
        return self


class RewardSettings(ScoringSettings):
    """What scores the responses: the weighted sum of all functions and models."""

    combine: Literal["sum", "standardised"] = "sum"
    """standardised: each reward less its group's mean, divided by its group's std, then weighted
    and summed (GDPO), so that each has its say, however small its numbers are beside another's."""
    chunks: int = Field(1, ge=1)
    """A rollout is sampled in this many parts; each is scored while the next is sampled."""
    max_error_share: float = Field(0.5, ge=0, le=1)
    """The run stops, saved, when more than this share of a step's responses has no score."""
    truncated: Truncated = "score"
    """What a response that was cut at the limit counts for. score: its score; zero: 0 in place of
    it; bootstrap: its score and the critic's value of what would have come; mask: nothing;
    mask_loss: its score counts for the others, in its group's mean, but it is not learned from."""
    normalise: Literal["none", "running"] = "none"
    """running: less the mean and divided by the std of all scores of the run so far."""
    score_clip: float | None = Field(None, gt=0)
    """Scores, once normalised, are cut to ± this; none leaves them."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Subtracted, after clipping, from the score of a response that was cut at the limit."""
    overlong_tokens: int = Field(0, ge=0)
    """Over the last so many tokens before sampling.max_new_tokens a response loses up to 1,
    linearly (DAPO); 0 loses nothing."""

    @model_validator(mode="after")
    def _refuse_to_normalise_twice(self) -> RewardSettings:
        if self.combine == "standardised" and self.normalise != "none":
            raise ValueError(
                f"rewards.normalise = {self.normalise} with rewards.combine = standardised, which "
                "has each reward's mean and spread out already. Set one of them back"
            )
        return self

    @model_validator(mode="after")
    def _refuse_penalties_of_masked_responses(self) -> RewardSettings:
        if self.missing_eos_penalty and self.truncated == "mask":
            raise ValueError(
                f"rewards.missing_eos_penalty = {self.missing_eos_penalty} with rewards.truncated "
                "= mask, which leaves out every response that it could be subtracted from. Set "
                "one of them back"
            )
        return self
