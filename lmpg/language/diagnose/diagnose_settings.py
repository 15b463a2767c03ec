"""Settings of `lmpg diagnose`."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from lmpg.language.trained.command_settings import MeasuringSettings
from lmpg.settings.section import Section


class VarianceSettings(MeasuringSettings):
    """Measure on a model, prompts and a reward what each estimator of the policy gradient gives for
    equal samples: variance, direction, bias, cost."""

    batches: int = Field(16, ge=4)
    """Batches that are sampled: one gradient estimate of every estimator from each. More make all
    figures surer."""
    batch_size: int = Field(32, ge=2)
    """Responses of one estimate: update.rollout_size of a run with a single minibatch."""
    group_size: int = Field(8, ge=2)
    """Responses to each prompt of a batch, whose scores RLOO and GRPO compare."""
    lams: tuple[float, ...] = (0.0, 0.9, 1.0)
    """λ of PPO's GAE, a row of the table for each; empty leaves PPO out."""
    critic_batches: int = Field(4, ge=1)
    """Batches more, of which the value head that PPO needs is fitted by least squares to the
    returns, unless the model has a critic of its own."""
    parameters: tuple[str, ...] = ()
    """Regular expressions for names of parameters whose gradient is measured, such as
    `layers.29`; empty takes all. Fewer take less time."""
    sketch: int = Field(32_771, ge=64)
    """Numbers that a gradient is kept in: inner products stay unbiased, squared norms are off by
    about √(2/this). A gradient with no more components is kept exactly. A prime is best."""
    output: str | None = None
    """JSON file for all that was measured; the page with the picture lies beside it as .html. none
    makes a fresh diagnoses/variance-NAME-TIME.json."""

    @field_validator("lams")
    @classmethod
    def _require_shares(cls, lams: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [lam for lam in lams if not 0 <= lam <= 1]
        if wrong:
            raise ValueError(f"lams has {wrong[0]:g} in it, expected numbers from 0 to 1")
        return tuple(sorted(set(lams)))

    @field_validator("parameters")
    @classmethod
    def _require_patterns(cls, parameters: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in parameters:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"parameters = {pattern} is no regular expression ({error}), expected some for "
                    "names of parameters, such as layers.29"
                ) from None
        return parameters

    @model_validator(mode="after")
    def _require_whole_groups(self) -> VarianceSettings:
        if self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size = {self.batch_size} is no multiple of group_size = {self.group_size}, "
                f"expected whole groups: set --batch-size to "
                f"{max(1, self.batch_size // self.group_size) * self.group_size}"
            )
        return self

    @model_validator(mode="after")
    def _require_samples_of_the_policy(self) -> VarianceSettings:
        if self.sampling.top_k or self.sampling.top_p < 1:
            raise ValueError(
                f"sampling.top_k = {self.sampling.top_k} and sampling.top_p = "
                f"{self.sampling.top_p:g} leave out tokens that the policy would sample, so that "
                "no estimator is unbiased: set them to 0 and 1"
            )
        return self


class OveroptimisationSettings(Section):
    """A run's score, which it was trained on, and a gold score, which it never saw, over the KL to
    where it began (Gao et al. 2023, arXiv 2210.10760)."""

    gold: str
    """What judges: a metric that the run has logged (`gold` for eval/gold, the name of a reward of
    weight 0, or as in metrics.jsonl); or a reward that scores the responses in samples.jsonl:
    FILE.py:NAME, a built-in one, or the Hub id or folder of a reward model."""
    points: int = Field(12, ge=3)
    """Points at most: steps beside each other are put together, so that each has more responses."""
    timeout: float = Field(60.0, gt=0)
    """Seconds one call of a gold function may take."""
    trust_remote_code: bool = False
    """Run Python code that comes with a gold model. Only for models whose code you have read."""
    output: str | None = None
    """JSON file for the points; the page with the picture lies beside it as .html. none makes a
    fresh diagnoses/overoptimisation-NAME-TIME.json."""
