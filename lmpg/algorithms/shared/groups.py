"""Learning from responses relative to the others to the same prompt, without a critic."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from lmpg.functional.advantages import (
    batch_standardised,
    group_centred,
    group_standardised,
    leave_one_out,
    length_weighted,
    relative_to_mean,
)
from lmpg.settings.section import RunStopped, Section
from lmpg.types import Credit, Rollout

GroupAdvantage = Literal[
    "standardised",
    "centred",
    "leave_one_out",
    "batch_standardised",
    "length_weighted",
    "relative",
]
STD_EPS = 1e-6


class Grouped(Section):
    """Fields and credit of GRPO and what came of it; beside `Regularised`, whose defaults it
    changes."""

    per_step: ClassVar[bool] = False
    group_size: int = Field(8, ge=2)
    """G: responses per prompt; a group of one has nothing to compare with."""
    advantage: GroupAdvantage = "standardised"
    """(r − mean)/std as in GRPO, r − mean as in Dr. GRPO, or r − mean of the others; centred, then
    over the whole batch's std as in GDPO; r − mean weighted by length as in OPO; or relative,
    (r − mean)/mean as in MaxRL, of scores that are 0 or more."""
    kl_coef: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference; 0 leaves it out."""
    kl_in: Literal["reward", "loss"] = "loss"
    """reward: a response's score is reduced by β Σ (log π − log π_ref); loss: a term of its own."""

    @model_validator(mode="after")
    def _refuse_penalties_in_relative_scores(self) -> Grouped:
        if self.advantage == "relative" and self.kl_coef and self.kl_in == "reward":
            raise ValueError(
                f"algorithm.advantage = relative with algorithm.kl_coef = {self.kl_coef} in the "
                "reward, which makes scores negative, and these are divided by their mean. Set "
                "algorithm.kl_in to loss, or algorithm.kl_coef to 0"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        """Ratios, and a reference when there is a KL penalty."""
        return super().needs | {"ratios"}  # type: ignore[misc]

    def assign_credit(self, rollout: Rollout) -> Credit:
        """The group-relative score on every step in the mask; responses without a score stay
        out."""
        rewards_BT = self.penalised_rewards(rollout)  # type: ignore[attr-defined]
        return group_credit(rollout, rewards_BT, self.group_size, self.advantage)


def group_credit(
    rollout: Rollout, rewards_BT: Tensor, group_size: int, advantage: GroupAdvantage
) -> Credit:
    """The group-relative sum of a response's rewards, on every step in its mask.

    Responses without a score stay out of their group's statistics.
    """
    scores_PG = rewards_BT.sum(1).view(-1, group_size)
    valid_PG = rollout.scorable_B.view(-1, group_size)
    if advantage == "standardised":
        advantages_PG = group_standardised(scores_PG, valid_PG, STD_EPS)
    elif advantage == "centred":
        advantages_PG = group_centred(scores_PG, valid_PG)
    elif advantage == "batch_standardised":
        advantages_PG = batch_standardised(scores_PG, valid_PG)
    elif advantage == "length_weighted":
        lengths_PG = rollout.mask_BT.sum(1).view(-1, group_size)
        advantages_PG = length_weighted(scores_PG, valid_PG, lengths_PG)
    elif advantage == "relative":
        _refuse_negative(scores_PG[valid_PG])
        advantages_PG = relative_to_mean(scores_PG, valid_PG)
    else:
        advantages_PG = leave_one_out(scores_PG, valid_PG)
    return Credit(advantages_PG.view(-1, 1) * rollout.mask_BT, rewards_BT)


def _refuse_negative(scores: Tensor) -> None:
    if (scores < 0).any():
        raise RunStopped(
            f"a score is {float(scores.min()):g}, but algorithm.advantage = relative divides by "
            "the mean score of a group, expected scores of 0 or more. Shift the reward, take off "
            "penalties (rewards.missing_eos_penalty, rewards.overlong_tokens), or set "
            "algorithm.advantage to centred"
        )
