"""Where the log-probs of π_old come from, the policy that an update's ratios compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmpg.training.settings import UpdateSettings


@dataclass(frozen=True)
class OldLogprobs:
    """One decision per run, made before its first rollout; see `decided`.

    source: "sampled" are those that the sampler recorded. "recomputed" are those of another
        forward of the policy, over the finished rollout, so that the first ratio is exactly 1.
        "update" are those of the update's own forward: where one optimizer step follows each
        rollout, the policy that the step finds is π_old, and the rollout need not say more.
    keep_forward: the forward that records a rollout is over the same rows as the first one of the
        update, so it is kept with its graph and not computed twice.
    """

    source: Literal["sampled", "recomputed", "update"]
    keep_forward: bool = False

    @classmethod
    def decided(
        cls, needs: frozenset[str], update: UpdateSettings, *, exact: bool, same_rows: bool
    ) -> OldLogprobs:
        """The decision for an algorithm with these `needs`.

        exact: the sampler's log-probs are the training forward's up to rounding, as in fp32.
        same_rows: one process holds the whole rollout, in the order in which it was sampled.
        """
        one_step = update.epochs * update.rollout_size // update.minibatch_size == 1
        unread = not needs & {"critic", "old_logprobs"}
        whole = update.rollout_size <= min(update.minibatch_size, update.microbatch_size)
        return cls(
            "sampled" if exact else "update" if one_step and unread else "recomputed",
            keep_forward=whole and same_rows and not update.microbatch_tokens,
        )


RECOMPUTED = OldLogprobs("recomputed")
"""The default: the log-probs of a rollout are those of the policy's own forward."""
