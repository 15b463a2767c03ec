"""The numbers of single tokens in samples.jsonl: what an algorithm and its update made of each.

Report pages colour tokens by them. They are read off what training has computed anyway; only the
log-probs after the update are a forward of their own, without gradient, over a handful of rows.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from lmpg.training.old_logprobs import OldLogprobs
from lmpg.training.settings import AnyUpdateSettings
from lmpg.training.update import microbatches
from lmpg.types import Credit, Policy, Rollout

TOKENS = "tokens"
"""The key of a row of samples.jsonl that has the numbers of its tokens."""
MOST = 256
"""Tokens of a response that are kept: the first half of them and the last."""

LONGEST_PROMPT = 2000
"""Characters of a prompt beside its tokens, from its end."""
VIEWS = 16
"""About how many of a run's steps have the numbers of tokens."""

NOTHING = 1e-5
X = TypeVar("X")


def is_due(iteration: int, every: int, total: int) -> bool:
    """Whether samples are written: in the first iteration, the last, and every so many."""
    return bool(every) and (iteration in (1, total) or iteration % every == 0)


def views_tokens(iteration: int, every: int, total: int) -> bool:
    """Whether they have the numbers of their tokens: about `VIEWS` times in a run, however long."""
    stride = every * max(1, -(-total // (every * VIEWS))) if every else 0
    return is_due(iteration, stride, total)


def kept(length: int) -> list[int]:
    """Which tokens of a response are kept, so that a row has a bounded size."""
    if length <= MOST:
        return list(range(length))
    return [*range(MOST // 2), *range(length - MOST // 2, length)]


def kept_of(values: list[X]) -> list[X]:
    """The values of those tokens, of a list with one for each token."""
    return [values[t] for t in kept(len(values))]


def four_digits(value: float) -> float:
    """The number as samples.jsonl shows it: 0 where it is a rounding error."""
    return 0.0 if abs(value) < NOTHING else float(f"{value:.4g}")


def short(x: Tensor) -> list[float | None]:
    """The numbers [N] with four digits; None for NaN and inf."""
    return [four_digits(v) if math.isfinite(v) else None for v in x.double().tolist()]


def of_rows(
    x_BT: Tensor, lengths: list[int], mask_BT: Tensor | None = None
) -> list[list[float | None]]:
    """The kept tokens of each row, short; None for those that are not in the mask."""
    x_BT = x_BT.detach().cpu()
    if mask_BT is not None:
        x_BT = torch.where(mask_BT.cpu(), x_BT, torch.nan)
    return [short(x_BT[b, kept(length)]) for b, length in enumerate(lengths)]


def with_credit(
    samples: list[dict[str, Any]], rollout: Rollout, credit: Credit, ratio_BT: Tensor
) -> list[dict[str, Any]]:
    """The rows of samples.jsonl, row b of the rollout each, with what the algorithm gave to their
    tokens: advantage, reward (with any KL penalty inside), logprob (of π_old), the critic's value
    where there is one, and ratio: π after the update / π_old."""
    columns: dict[str, Tensor | None] = {
        "advantage": credit.advantages_BT,
        "value": rollout.values_BT,
        "reward": credit.rewards_BT,
        "logprob": rollout.logprobs_BT,
        "ratio": ratio_BT,
    }
    lengths = [row[TOKENS]["length"] for row in samples]
    found = {
        name: of_rows(x[: len(samples)], lengths, rollout.mask_BT[: len(samples)])
        for name, x in columns.items()
        if x is not None
    }
    made = []
    for b, row in enumerate(samples):
        numbers = {name: rows[b] for name, rows in found.items()}
        made.append({**row, TOKENS: row[TOKENS] | numbers})
    return made


def shows_tokens(samples: list[dict[str, Any]]) -> bool:
    """Whether the rows are to have the numbers of their tokens."""
    return bool(samples) and TOKENS in samples[0]


@torch.no_grad()
def logprobs_now(
    policy: Policy, rollout: Rollout, count: int, settings: AnyUpdateSettings
) -> Tensor:
    """log π of the present policy for the first `count` rows, [count, T]."""
    inputs = {name: x[:count].cpu() for name, x in rollout.inputs.items()}
    logprobs_BT = torch.zeros(rollout.mask_BT[:count].shape)
    for part in microbatches(inputs, settings.microbatch_size, settings.most_tokens):
        few = {name: x.index_select(0, part) for name, x in inputs.items()}
        logprobs_BT[part] = policy.evaluate(few).logprobs_BT.float().cpu()
    return logprobs_BT


def logprobs_before(
    policy: Policy, rollout: Rollout, count: int, settings: AnyUpdateSettings, old: OldLogprobs
) -> Tensor:
    """log π_old of the first `count` rows: the rollout's, unless the update takes its own."""
    if old.source == "update":
        return logprobs_now(policy, rollout, count, settings)
    return rollout.logprobs_BT[:count]
