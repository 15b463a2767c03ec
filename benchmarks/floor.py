"""The floor: how long this machine needs for a model's matrix products alone.

Every product of the trunk and of the head is timed at its real shape, with queries, keys and
values (and the two halves of the gated layer) as one product each. Attention, norms, softmax,
sampling, the optimizer and all of Python are not in it, so nothing real reaches it.
"""

from __future__ import annotations

import time
from functools import cache

import torch

RESPONSES, GROUP, PROMPT, LENGTH, EPOCHS = 64, 8, 16, 64, 4


@cache
def product_seconds(rows: int, inner: int, outer: int, dtype: torch.dtype) -> float:
    """[rows, inner] @ [inner, outer], the fastest of several, on one thread or on all of them.

    The fastest, because what other programs take is no floor; one thread, because that is faster
    for small products.
    """
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, outer).to(dtype)
    threads = torch.get_num_threads()
    times = []
    for count in {1, threads}:
        torch.set_num_threads(count)
        began = time.perf_counter()
        for turn in range(200):
            start = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - start)
            if turn > 7 and time.perf_counter() - began > 0.1:
                break
    torch.set_num_threads(threads)
    return min(times)


def forward_seconds(shape: dict[str, int], rows: int, head_rows: int, dtype: torch.dtype) -> float:
    """One forward of `rows` tokens of which `head_rows` reach the head.

    shape: the model's config, of which widths, layers, heads and vocabulary are read.
    """
    hidden, gated = shape["hidden_size"], shape["intermediate_size"]
    keys = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    products = ((hidden, hidden + 2 * keys), (hidden, hidden), (hidden, 2 * gated), (gated, hidden))
    layer = sum(product_seconds(rows, *product, dtype) for product in products)
    head = product_seconds(head_rows, hidden, shape["vocab_size"], dtype) if head_rows else 0.0
    return shape["num_hidden_layers"] * layer + head


def decode_seconds(
    shape: dict[str, int], dtype: torch.dtype, rows: int = RESPONSES, length: int = LENGTH
) -> float:
    """`length` tokens for each of `rows` responses, one step after the other."""
    return length * forward_seconds(shape, rows, rows, dtype)


def step_seconds(
    case: str, shape: dict[str, int], dtype: torch.dtype, length: int = LENGTH
) -> float:
    """A whole step: sampling, reference, and forward and backward (twice a forward) per epoch."""
    tokens, chosen = RESPONSES * (PROMPT + length), RESPONSES * length
    prompts = RESPONSES // GROUP if case == "grpo" else RESPONSES
    prefill = forward_seconds(shape, prompts * PROMPT, 0, dtype)
    once = forward_seconds(shape, tokens, chosen, dtype)
    trunk = forward_seconds(shape, tokens, 0, dtype)
    sampled = prefill + decode_seconds(shape, dtype, length=length)
    if case == "grpo":
        return sampled + once + 3 * once
    separate = (1 + 3 * EPOCHS) * trunk if case == "ppo_separate" else 0.0
    return sampled + once + 3 * EPOCHS * once + separate
