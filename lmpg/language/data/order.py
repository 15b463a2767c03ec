"""The order in which prompts and examples are used: pure functions of seed, epoch and step."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def epoch_order(count: int, epoch: int, seed: int) -> np.ndarray:
    """The order of one epoch, a permutation of range(count): int64 [count], not to be changed."""
    return random_numbers("epoch", epoch, seed).permutation(count)


def prompts_for_step(num_prompts: int, step: int, prompts_per_step: int, seed: int) -> list[int]:
    """Indices of the prompts of one step (counted from 0): a walk through shuffled epochs.

    Every prompt is used once per epoch; a step may span epochs. Nothing needs saving to resume.
    """
    if num_prompts < 1 or prompts_per_step < 1:
        raise ValueError(
            f"num_prompts is {num_prompts} and prompts_per_step {prompts_per_step}, expected ≥ 1"
        )
    first = step * prompts_per_step
    return [
        int(epoch_order(num_prompts, position // num_prompts, seed)[position % num_prompts])
        for position in range(first, first + prompts_per_step)
    ]


def other_prompts(num_prompts: int, step: int, used: list[int], count: int, seed: int) -> list[int]:
    """Indices of `count` further prompts for a step (counted from 0), in an order of its own, which
    repeats those in `used` only after all others."""
    order = random_numbers("other", step, seed).permutation(num_prompts).tolist()
    before = set(used)
    order = [i for i in order if i not in before] + [i for i in order if i in before]
    return [order[i % num_prompts] for i in range(count)]


def held_out_split(num_rows: int, num_eval: int) -> tuple[list[int], list[int]]:
    """Indices (train, held out) in file order: the last min(num_eval, 20%) of a shuffle.

    The shuffle has a seed of its own, so that runs with different seeds share one split.
    """
    order = random_numbers("held out").permutation(num_rows)
    count = min(num_eval, num_rows // 5)
    return sorted(order[: num_rows - count].tolist()), sorted(order[num_rows - count :].tolist())


def subset(num_rows: int, num_eval: int) -> list[int]:
    """Indices in file order of at most `num_eval` rows, the same ones in every run."""
    return sorted(random_numbers("subset").permutation(num_rows)[:num_eval].tolist())


def random_numbers(*key: int | str) -> np.random.Generator:
    """A generator whose numbers depend on nothing but `key`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
