"""Weights of an engine, kept at their addresses while their numbers change.

A captured CUDA graph knows tensors by their addresses, so after an update the new weights must be
copied into the tensors that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.language.sampling.engines.linear import DenseLinear, PackedLinear


@torch.no_grad()
def copy_weights_in_place(held: Any, fresh: Any, model: nn.Module) -> bool:
    """Copies `fresh` into `held` in place, both read from `model`.

    Returns False and changes nothing if shapes or dtypes differ, or if a tensor is a live parameter
    of `model` (those are shared, never overwritten) whose address changed.
    """
    old, new = list(_leaves(held)), list(_leaves(fresh))
    if [_form(x) for x in old] != [_form(x) for x in new]:
        return False
    changed = [(x, y) for x, y in zip(old, new) if isinstance(x, Tensor) and not _same(x, y)]
    own = {_storage(x) for x in (*model.parameters(), *model.buffers())}
    if any(_storage(x) in own for pair in changed for x in pair):
        return False
    for x, y in changed:
        x.copy_(y)
    return True


def _leaves(x: Any) -> Iterator[Any]:
    """Tensors, numbers and strings of nested weights, always in the same order."""
    if isinstance(x, DenseLinear | PackedLinear):
        yield from _leaves(x.tensors)
    elif isinstance(x, nn.Module):
        yield from x.parameters()
    elif isinstance(x, dict):
        yield from _leaves(list(x.values()))
    elif isinstance(x, list):
        for part in x:
            yield from _leaves(part)
    elif is_dataclass(x):
        yield from _leaves([getattr(x, field.name) for field in fields(x)])
    else:
        yield x


def _form(x: Any) -> Any:
    """What two leaves must have in common: all but a tensor's address and numbers."""
    if not isinstance(x, Tensor):
        return x
    return x.shape, x.dtype, x.device, x.layout, None if x.is_mkldnn else x.stride()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two of the same form are the same memory."""
    return one is other or (not one.is_mkldnn and one.data_ptr() == other.data_ptr())


def _storage(x: Tensor) -> int:
    """Where its memory begins; −1 for packed tensors, which are always copies."""
    return -1 if x.is_mkldnn else x.untyped_storage().data_ptr()
