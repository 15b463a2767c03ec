"""Settings of the `rewards` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lmpg.sections import Section


class RewardSettings(Section):
    """What scores the responses: the weighted sum of all functions and models."""

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
    chunks: int = Field(1, ge=1)
    """A rollout is sampled in this many parts; each is scored while the next is sampled."""
    process: Literal["none", "token", "step"] = "none"
    """Whether functions may return a list of numbers per completion: one per token or step."""
    step_separator: str = Field("\n", min_length=1)
    """What ends a step of a completion where `process` is `step`."""
    max_error_share: float = Field(0.5, ge=0, le=1)
    """The run stops, saved, when more than this share of a step's responses has no score."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> RewardSettings:
        expected = len(self.functions) + len(self.models)
        if self.weights and len(self.weights) != expected:
            raise ValueError(
                f"rewards.weights has {len(self.weights)} numbers, expected {expected}: "
                "one per entry of rewards.functions, then one per entry of rewards.models"
            )
        return self
