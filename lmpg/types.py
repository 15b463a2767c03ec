"""What flows between the layers: Rollout → Credit → Minibatch → Evaluation → loss terms.

Everything downstream of `Rollout` treats a language model's response and a gymnasium episode
alike: a row of steps, of which `mask_BT` marks those that the policy took (a language model: the
tokens that it sampled).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lmpg.functional.advantages import gae
from lmpg.functional.masking import WHITEN_EPS, Reduction, whitened
from lmpg.functional.row_wise import RowWise
from lmpg.functional.turns import between_turns


@dataclass(frozen=True)
class Rollout(RowWise):
    """B rows of T steps, as they were sampled. Values are read *before* each step.

    inputs: whatever the policy needs to evaluate the rows again; every tensor starts with B. One
        that is named `…_lengths` [B] says how much of each row is no padding.
    rewards_BT: rewards before any penalty, a response's score on its last token (float32).
    scorable_B: False where the reward failed: out of every statistic and of the loss.
    learned_B: False where a row counts in statistics but is not learned from; None: all are.
    next_values_BT: V of the state after the step; for a truncated episode that of its true last
        observation. `terminated_BT` stops the bootstrap, `ended_BT` the sum over later steps.
    times_BT: steps of the episode before this one (int64); None where every row begins one.
    sampler_logprobs_BT: of the engine that sampled, where it rounds otherwise than `logprobs_BT`.
    turns_BT: the policy's turn that a step belongs to, from 0 (int64); None: a row is one turn.
    states_BT: what its turn starts from (int64): equal numbers are equal states; where asked for.
    greedy_scores_B: score of the greedy response to the row's prompt, where it is asked for.
    baseline: running mean of earlier rollouts' returns (a scalar), None in the first one.
    """

    inputs: dict[str, Tensor]
    mask_BT: Tensor
    logprobs_BT: Tensor
    rewards_BT: Tensor
    terminated_BT: Tensor
    ended_BT: Tensor
    scorable_B: Tensor
    learned_B: Tensor | None = None
    values_BT: Tensor | None = None
    next_values_BT: Tensor | None = None
    ref_logprobs_BT: Tensor | None = None
    times_BT: Tensor | None = None
    sampler_logprobs_BT: Tensor | None = None
    turns_BT: Tensor | None = None
    states_BT: Tensor | None = None
    greedy_scores_B: Tensor | None = None
    baseline: Tensor | None = None

    def __post_init__(self) -> None:
        expected = tuple(self.mask_BT.shape)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_BT") and value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"Rollout.{field.name} has shape {tuple(value.shape)}, expected {expected} "
                    "(rows B, steps T) as mask_BT has"
                )
        by_row = {x: getattr(self, x) for x in ("scorable_B", "learned_B", "greedy_scores_B")}
        for name, value in {**self.inputs, **by_row}.items():
            if value is not None and len(value) != expected[0]:
                raise ValueError(f"Rollout {name} has {len(value)} rows, expected {expected[0]}")
        if self.turns_BT is not None and (self.turns_BT[self.mask_BT] < 0).any():
            raise ValueError("Rollout.turns_BT: a step of the policy has no turn, expected 0, 1, …")
        for name in ("mask_BT", "terminated_BT", "ended_BT", "scorable_B"):
            if getattr(self, name).dtype != torch.bool:
                raise ValueError(f"Rollout.{name} must be bool, not {getattr(self, name).dtype}")

    @property
    def counted_BT(self) -> Tensor:
        """Steps that enter statistics and loss: taken by the policy, in a row that has a score."""
        return self.mask_BT & self.scorable_B[:, None]

    @property
    def learned_BT(self) -> Tensor:
        """Steps that enter the loss: those that count, in rows that are learned from."""
        if self.learned_B is None:
            return self.counted_BT
        return self.counted_BT & self.learned_B[:, None]

    @property
    def scores_B(self) -> Tensor:
        """Score per response: the sum of its rewards."""
        return self.rewards_BT.sum(1)

    def discounts_from_start(self, gamma: float, turn_gamma: float | None = None) -> Tensor:
        """The product of the discounts of all earlier steps of its episode, γ^t without turns, for
        each step that is in the mask, [B, T]."""
        times_BT = self.mask_BT.cumsum(1) - 1 if self.times_BT is None else self.times_BT
        found_BT = gamma ** times_BT.float()
        if turn_gamma is not None and self.turns_BT is not None:
            turns_BT = self.turns_BT.clamp(min=0)
            found_BT = gamma ** (times_BT - turns_BT).float() * turn_gamma ** turns_BT.float()
        return torch.where(self.mask_BT, found_BT, 0.0)

    def gae(
        self,
        rewards_BT: Tensor,
        gamma: float,
        lam: float | Tensor,
        turn_gamma: float | None = None,
        turn_lam: float | None = None,
    ) -> Tensor:
        """Advantages [B, T] of `rewards_BT` against the critic, see `functional.advantages`.

        turn_gamma, turn_lam: from the last step of a turn to the next turn, in place of the others.
        """
        values: tuple[Any, Any] = (self.values_BT, self.next_values_BT)
        masks = (self.terminated_BT, self.ended_BT, self.mask_BT)
        decay = self._between_turns(gamma, turn_gamma), self._between_turns(lam, turn_lam)
        return gae(rewards_BT, *values, *masks, *decay)

    def returns_to_go(
        self, rewards_BT: Tensor, gamma: float, turn_gamma: float | None = None
    ) -> Tensor:
        """Discounted sum of this and all later rewards, [B, T]: GAE at λ = 1 with V = 0."""
        zeros_BT = torch.zeros_like(rewards_BT)
        masks = (self.terminated_BT, self.ended_BT, self.mask_BT)
        decay = self._between_turns(gamma, turn_gamma)
        return gae(rewards_BT, zeros_BT, zeros_BT, *masks, decay, 1.0)

    def _between_turns(self, inside: Any, between: float | None) -> Any:
        """`inside` for all steps, `between` for those that another turn follows."""
        if between is None or self.turns_BT is None:
            return inside
        return between_turns(inside, between, self.turns_BT, self.mask_BT)


@dataclass(frozen=True)
class Credit:
    """An algorithm's credit for a rollout: how much better than expected each step was.

    rewards_BT: the rewards it used, with any KL penalty inside.
    returns_BT: the critic's targets, from unwhitened advantages; None without a critic.
    learned_B: rows that the update learns from (bool); None: all. The others are left out of it.
    """

    advantages_BT: Tensor
    rewards_BT: Tensor
    returns_BT: Tensor | None = None
    learned_B: Tensor | None = None


@dataclass(frozen=True)
class Minibatch(RowWise):
    """Rows of a rollout with their credit: the fixed numbers that a loss compares with."""

    inputs: dict[str, Tensor]
    mask_BT: Tensor
    old_logprobs_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor | None = None
    old_values_BT: Tensor | None = None
    ref_logprobs_BT: Tensor | None = None
    sampler_logprobs_BT: Tensor | None = None

    @classmethod
    def of(cls, rollout: Rollout, credit: Credit) -> Minibatch:
        """The rows of `rollout` to learn from as one minibatch; the others are masked out.

        Their credit becomes 0 too: NaN times a zero weight would still be a NaN gradient.
        """
        mask_BT, returns_BT, learned_B = rollout.learned_BT, credit.returns_BT, credit.learned_B
        if learned_B is not None:
            mask_BT = mask_BT & learned_B[:, None]
        whole = cls(
            inputs=rollout.inputs,
            mask_BT=mask_BT,
            old_logprobs_BT=rollout.logprobs_BT,
            advantages_BT=torch.where(mask_BT, credit.advantages_BT, 0),
            returns_BT=None if returns_BT is None else torch.where(mask_BT, returns_BT, 0),
            old_values_BT=rollout.values_BT,
            ref_logprobs_BT=rollout.ref_logprobs_BT,
            sampler_logprobs_BT=rollout.sampler_logprobs_BT,
        )
        if learned_B is None or not learned_B.any():  # without any row nothing could be divided
            return whole
        return whole.rows(learned_B.nonzero()[:, 0])

    def whitened(self) -> Minibatch:
        """The same rows with advantages standardised over their steps."""
        advantages_BT = whitened(self.advantages_BT, self.mask_BT, WHITEN_EPS)
        return replace(self, advantages_BT=advantages_BT)

    def split(self, count: int) -> Iterator[Minibatch]:
        """`count` parts of consecutive rows, of equal size as far as possible; no copies."""
        mine = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        columns = {name: x.tensor_split(count) for name, x in mine.items()}
        inputs = {name: x.tensor_split(count) for name, x in self.inputs.items()}
        for i in range(count):
            part = {name: pieces[i] for name, pieces in inputs.items()}
            yield Minibatch(inputs=part, **{name: pieces[i] for name, pieces in columns.items()})


@dataclass(frozen=True)
class Evaluation:
    """The present policy's numbers for given steps (float32, with gradient while it trains).

    logprobs_BT: log π of the recorded steps. entropy_BT: of the distributions that they were drawn
        from, in nats. divergence_BT: of these from a teacher's, where one is learned from by that.
    """

    logprobs_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor | None = None
    divergence_BT: Tensor | None = None


class Policy(Protocol):
    """A torch module that evaluates the `inputs` of a rollout or minibatch."""

    def evaluate(self, inputs: dict[str, Tensor]) -> Evaluation:
        """Log-probs, entropy and values of the recorded steps, [B, T] each."""
        ...

    def trainable_state(self) -> dict[str, Tensor]:
        """Every tensor that training changes."""
        ...

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load a result of `trainable_state`; names and shapes must match exactly."""
        ...


class Algorithm(Protocol):
    """Hyperparameters as fields, the method as two functions of numbers; see `lmpg.algorithms`."""

    reduction: Reduction
    whiten_minibatches: bool

    @property
    def group_size(self) -> int:
        """Responses per prompt; 1 where there are no groups."""
        ...

    @property
    def per_step(self) -> bool:
        """Whether credit differs between the steps of a response, so that rewards may too."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Of {"critic", "reference", "teacher", "divergence", "greedy", "ratios", "old_logprobs",
        "states"}: what it must be given.

        greedy: the score of each prompt's greedy response. ratios: π/π_old, so that π_old must be
        the very distribution that was sampled from. old_logprobs: credit reads the rollout's
        log-probs, so that they must be exact before the update. teacher: stands in the reference's
        place. divergence: that to the teacher in every evaluation of the update. states: those that
        turns start from.
        """
        ...

    def assign_credit(self, rollout: Rollout) -> Credit:
        """Once per rollout, on the global rollout, without gradient."""
        ...

    def loss_terms(self, new: Evaluation, batch: Minibatch) -> dict[str, Tensor]:
        """Named per-step terms [B, T], scaled by their coefficients, neither masked nor reduced.

        Names are `policy`, `value`, `entropy`, `kl`, `penalty`, `distillation`; the first or the
        last is always there. The first three depend on log-probs, values and the entropy alone.
        """
        ...
