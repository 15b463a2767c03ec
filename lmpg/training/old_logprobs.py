"""Where the log-probs of π_old come from, the policy that an update's ratios compare with, and what
the policy's loss is multiplied by where the engine that sampled rounds otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from lmpg.functional.masking import masked_mean
from lmpg.functional.sampler_correction import masked_weights, truncated_weights
from lmpg.training.settings import AnyUpdateSettings, UpdateSettings
from lmpg.types import Minibatch


@dataclass(frozen=True)
class OldLogprobs:
    """One decision per run, made before its first rollout; see `decided`.

    source: "sampled" are those that the sampler recorded. "recomputed" are those of another
        forward of the policy, over the finished rollout, so that the first ratio is exactly 1.
        "update" are those of the update's own forward: where one optimizer step follows each
        rollout, the policy that the step finds is π_old, and the rollout need not say more.
    keep_forward: the forward that records a rollout is over the same rows as the first one of the
        update, so it is kept with its graph and not computed twice.
    compared: the sampler's own are kept beside those of the recomputing forward.
    """

    source: Literal["sampled", "recomputed", "update"]
    keep_forward: bool = False
    compared: bool = False

    @classmethod
    def decided(
        cls,
        needs: frozenset[str],
        update: AnyUpdateSettings,
        *,
        exact: bool,
        same_rows: bool,
        compared: bool = False,
    ) -> OldLogprobs:
        """The decision for an algorithm with these `needs`.

        exact: the sampler's log-probs are the training forward's up to rounding, as in fp32.
        same_rows: one process holds the whole rollout, in the order in which it was sampled.
        compared: the sampler is told apart from π_old, whose log-probs must then be known before
        the update.
        """
        one_step = update.epochs * update.rollout_size // update.minibatch_size == 1
        unread = not needs & {"critic", "old_logprobs"} and not compared
        whole = update.rollout_size <= min(update.minibatch_size, update.microbatch_size)
        return cls(
            "sampled" if exact else "update" if one_step and unread else "recomputed",
            keep_forward=whole and same_rows and not update.microbatch_tokens,
            compared=compared and not exact,
        )


RECOMPUTED = OldLogprobs("recomputed")
"""The default: the log-probs of a rollout are those of the policy's own forward."""

SamplerWeights = Callable[[Tensor], Tensor]
"""Weights from log(π_old/μ), where μ has sampled."""


def sampler_weights(update: UpdateSettings) -> SamplerWeights | None:
    """As `update.sampler_correction` asks for; None leaves the loss as it is."""
    if update.sampler_correction == "truncated":
        return partial(truncated_weights, cap=update.sampler_cap or 2.0)
    if update.sampler_correction == "masked":
        return partial(masked_weights, floor=update.sampler_floor, cap=update.sampler_cap or 5.0)
    return None


def corrected(
    terms: dict[str, Tensor], batch: Minibatch, weights: SamplerWeights
) -> tuple[dict[str, Tensor], Minibatch]:
    """The terms with that of the policy weighed, and the minibatch with advantages weighed, so that
    a step that teaches nothing is not counted as clipped."""
    weights_BT = weights(batch.old_logprobs_BT - batch.sampler_logprobs_BT)  # type: ignore[operator]
    weighed = replace(batch, advantages_BT=batch.advantages_BT * weights_BT)
    if "policy" not in terms:
        return terms, weighed
    return terms | {"policy": terms["policy"] * weights_BT}, weighed


def sampler_metrics(batch: Minibatch, weights: SamplerWeights | None) -> dict[str, float]:
    """The mean weight of the steps, and the share of those that have none; {} without weights."""
    if weights is None or batch.sampler_logprobs_BT is None:
        return {}
    weights_BT = weights(batch.old_logprobs_BT - batch.sampler_logprobs_BT)
    return {
        "sampler/weight_mean": float(masked_mean(weights_BT, batch.mask_BT)),
        "sampler/left_out": float(masked_mean((weights_BT == 0).float(), batch.mask_BT)),
    }
