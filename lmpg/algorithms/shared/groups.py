"""Learning from responses relative to the others to the same prompt, without a critic."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
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
from lmpg.functional.turns import Relative, relative_to_same_state, turn_returns
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
OF_TURNS: dict[str, Relative] = {
    "standardised": partial(group_standardised, eps=STD_EPS),
    "centred": group_centred,
    "leave_one_out": leave_one_out,
}
"""The advantages that compare turns with each other, too: of groups of any size."""


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
    group_level: Literal["episode", "turn"] = "episode"
    """What is compared: whole responses, or also turns in an environment of text, each with those
    of its group that start from the same state (GiGPO, arXiv 2505.10978)."""
    turn_coef: float = Field(1.0, ge=0)
    """ω: weight of a turn's advantage beside that of the whole, where turns are compared."""
    turn_gamma: float = Field(0.95, gt=0, le=1)
    """Discount from turn to turn of what a turn brought, where turns are compared."""
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

    @model_validator(mode="after")
    def _refuse_settings_of_turns_that_do_nothing(self) -> Grouped:
        if self.group_level == "turn" and self.advantage not in OF_TURNS:
            raise ValueError(
                f"algorithm.advantage = {self.advantage} with algorithm.group_level = turn, whose "
                f"groups are of any size. Set algorithm.advantage to {', '.join(OF_TURNS)}, or "
                "algorithm.group_level to episode"
            )
        for key in ("turn_coef", "turn_gamma"):
            value, default = getattr(self, key), Grouped.model_fields[key].default
            if self.group_level == "episode" and value != default:
                raise ValueError(
                    f"algorithm.{key} = {value} has no effect with algorithm.group_level = "
                    "episode, which sums all turns. Leave it out, or set algorithm.group_level "
                    "to turn"
                )
        return self

    @property
    def needs(self) -> frozenset[str]:
        """Ratios, the states that turns start from where these are compared, and a reference when
        there is a KL penalty."""
        states = {"states"} if self.group_level == "turn" else set()
        return super().needs | {"ratios"} | states  # type: ignore[misc]

    def assign_credit(self, rollout: Rollout) -> Credit:
        """The group-relative score on every step in the mask, with that of its turn where turns
        are compared; responses without a score stay out."""
        rewards_BT = self.penalised_rewards(rollout)  # type: ignore[attr-defined]
        credit = group_credit(rollout, rewards_BT, self.group_size, self.advantage)
        if self.group_level == "episode":
            return credit
        turns_BT = self._turn_advantages(rollout, rewards_BT)
        return replace(credit, advantages_BT=credit.advantages_BT + self.turn_coef * turns_BT)

    def _turn_advantages(self, rollout: Rollout, rewards_BT: Tensor) -> Tensor:
        """How much better each turn did than those from the same state, on all its steps."""
        turns_BT, states_BT = rollout.turns_BT, rollout.states_BT
        if turns_BT is None or states_BT is None:
            raise ValueError("group_level = turn needs a rollout with turns_BT and states_BT")
        returns_BT = turn_returns(rewards_BT, turns_BT, rollout.mask_BT, self.turn_gamma)
        parts = returns_BT, turns_BT, states_BT, rollout.counted_BT
        return relative_to_same_state(*parts, self.group_size, OF_TURNS[self.advantage])


def group_credit(
    rollout: Rollout, rewards_BT: Tensor, group_size: int, advantage: GroupAdvantage
) -> Credit:
    """The group-relative sum of a response's rewards, on every step in its mask.

    Responses without a score stay out of their group's statistics.
    """
    scores_PG = rewards_BT.sum(1).view(-1, group_size)
    valid_PG = rollout.scorable_B.view(-1, group_size)
    if advantage in OF_TURNS:
        advantages_PG = OF_TURNS[advantage](scores_PG, valid_PG)
    elif advantage == "batch_standardised":
        advantages_PG = batch_standardised(scores_PG, valid_PG)
    elif advantage == "length_weighted":
        lengths_PG = rollout.mask_BT.sum(1).view(-1, group_size)
        advantages_PG = length_weighted(scores_PG, valid_PG, lengths_PG)
    else:  # relative
        _refuse_negative(scores_PG[valid_PG])
        advantages_PG = relative_to_mean(scores_PG, valid_PG)
    return Credit(advantages_PG.view(-1, 1) * rollout.mask_BT, rewards_BT)


def _refuse_negative(scores: Tensor) -> None:
    if (scores < 0).any():
        raise RunStopped(
            f"a score is {float(scores.min()):g}, but algorithm.advantage = relative divides by "
            "the mean score of a group, expected scores of 0 or more. Shift the reward, take off "
            "penalties (rewards.missing_eos_penalty, rewards.overlong_tokens), or set "
            "algorithm.advantage to centred"
        )
