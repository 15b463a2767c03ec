"""What goes wrong in a run, told from its metrics while it goes on: each kind in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 10
"""Steps in a row that must show it; single ones may be chance."""
FAR, LOST = 5.0, 1.0
"""Times the KL that was asked for; nats per token, beyond which the language is another."""
COLLAPSED = 0.05
"""The share of its first entropy below which a policy that has gained nothing has collapsed."""

Metrics = Mapping[str, Any]


def alarms(first: Sequence[Metrics], newest: Sequence[Metrics], asked: Metrics) -> dict[str, str]:
    """What the newest steps show, by kind: a line that says what is wrong and what to do.

    first, newest: the metrics of the first and the newest `WINDOW` steps. asked: `kl_target` and
    `target_kl`, where the settings ask for them.
    """
    if len(newest) < WINDOW:
        return {}
    found = {
        "cut off": _cut_off(newest),
        "constant reward": _constant_reward(newest),
        "kl": _kl(newest, asked.get("kl_target")),
        "update": _large_updates(newest, asked.get("target_kl")),
        "entropy": _collapsed(first, newest),
    }
    return {kind: text for kind, text in found.items() if text}


def _cut_off(newest: Sequence[Metrics]) -> str:
    if not _least(newest, "completions/clipped_ratio") >= 1:
        return ""
    return (
        f"all responses of the last {WINDOW} steps were cut off at sampling.max_new_tokens, none "
        "ended by itself: raise it, or see whether the prompts' format lets the model end (chat "
        "template, EOS token)"
    )


def _constant_reward(newest: Sequence[Metrics]) -> str:
    means = {row.get("reward") for row in newest}
    if _mean(newest, "reward_std") != 0 or len(means) > 1:
        return ""
    return (
        f"every response of the last {WINDOW} steps has the score {means.pop():g}: nothing can be "
        "learned. Read samples.jsonl, and see whether the reward finds what it looks for"
    )


def _kl(newest: Sequence[Metrics], target: float | None) -> str:
    kl, length = _least(newest, "objective/kl"), _mean(newest, "completions/mean_length")
    if target is not None and kl > FAR * target:
        return (
            f"the KL to the reference is {kl:.3g} nats per response, {kl / target:.0f} times "
            f"algorithm.kl_target = {target:g}: lower update.learning_rate"
        )
    if math.isnan(kl):  # of the rollouts; an evaluation may know it
        kl, length = _newest(newest, "eval/kl"), _newest(newest, "eval/length")
    if kl > LOST * length:
        return (
            f"the KL to the reference is {kl:.3g} nats per response of {length:.3g} tokens: the "
            "policy hardly resembles the model that it started from. Raise algorithm.kl_coef, or "
            "lower update.learning_rate"
        )
    return ""


def _large_updates(newest: Sequence[Metrics], target: float | None) -> str:
    limit = 0.5 if target is None else max(FAR * target, 0.05)
    size = _least(newest, "policy/approx_kl")
    if not size > limit:
        return ""
    than = "" if target is None else f", update.target_kl is {target:g}"
    return (
        f"each update moves the policy by {size:.3g} nats per step (policy/approx_kl{than}): lower "
        "update.learning_rate or update.epochs"
    )


def _collapsed(first: Sequence[Metrics], newest: Sequence[Metrics]) -> str:
    before, now = _mean(first, "policy/entropy"), -_least(newest, "policy/entropy", -1)
    gained = False
    for name in ("reward", "episode/return_mean"):
        old, new = _mean(first, name), _mean(newest, name)
        gained = gained or new > old + 0.01 * abs(old)
    if not (before > 0 and now < COLLAPSED * before) or gained:
        return ""
    return (
        f"the entropy has fallen from {before:.3g} to {now:.3g} nats per step, and the reward is "
        "no better than at the start: the policy has collapsed. Lower update.learning_rate, or set "
        "algorithm.entropy_coef"
    )


def _mean(rows: Sequence[Metrics], name: str) -> float:
    """The mean of a metric that every row has; NaN of others."""
    known = _all(rows, name)
    return sum(known) / len(known) if known else math.nan


def _least(rows: Sequence[Metrics], name: str, sign: int = 1) -> float:
    """The least of sign times a metric that every row has; NaN of others."""
    return min((sign * x for x in _all(rows, name)), default=math.nan)


def _all(rows: Sequence[Metrics], name: str) -> list[float]:
    """A metric's values; none where a row is without one."""
    values = [row.get(name) for row in rows]
    known = [x for x in values if isinstance(x, int | float)]
    return known if len(known) == len(values) else []


def _newest(rows: Sequence[Metrics], name: str) -> float:
    """The newest value of a metric that few rows have; NaN where none has it."""
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), math.nan)
