"""How rows are cut into forwards: memory and time, never the result."""

from __future__ import annotations

import torch
from torch import Tensor


def microbatches(inputs: dict[str, Tensor], rows: int, tokens: int = 0) -> list[Tensor]:
    """Indices of the rows [B] of each forward: `rows` at most, and where there are `tokens` (not 0)
    no more than these with padding. Longest first, rows of like length together."""
    count = len(next(iter(inputs.values())))
    if "response_lengths" not in inputs:  # nothing is padded, so the order is of no matter
        return list(torch.arange(count).split(rows)) if count else []
    prompt_B, response_B = (inputs[f"{name}_lengths"].cpu() for name in ("prompt", "response"))
    order = (prompt_B + response_B).argsort(stable=True, descending=True)
    columns = zip(prompt_B[order].tolist(), response_B[order].tolist())
    return list(order.split(_sizes(list(columns), rows, tokens))) if count else []


def _sizes(columns: list[tuple[int, int]], rows: int, tokens: int) -> list[int]:
    sizes: list[int] = []
    prompt = response = 0
    for one, other in columns:
        wider = (max(prompt, one), max(response, other))
        full = not sizes or sizes[-1] == rows
        if full or (tokens and sum(wider) * (sizes[-1] + 1) > tokens):
            sizes.append(0)
            wider = (one, other)
        prompt, response = wider
        sizes[-1] += 1
    return sizes
