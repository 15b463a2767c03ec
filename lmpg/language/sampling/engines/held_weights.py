"""Weights that stay where they are while what they hold is read again from the model.

A captured graph knows tensors by their addresses, so after an update the new weights must be
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
def read_into(held: Any, fresh: Any, model: nn.Module) -> bool:
    """Copy what `fresh` holds into the tensors of `held`, both read from `model`.

    False, with nothing changed, where that cannot be: another form, or one of the two is the
    model's own parameter (what need not be copied is read where it lies) and has moved.
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
    """Tensors, numbers and words of nested weights, always in the same order."""
    if isinstance(x, DenseLinear | PackedLinear):
        yield from _leaves(x.tensors)
    elif isinstance(x, nn.Module):
        yield from x.parameters()
    elif isinstance(x, list):
        for part in x:
            yield from _leaves(part)
    elif is_dataclass(x):
        yield from _leaves([getattr(x, field.name) for field in fields(x)])
    else:
        yield x


def _form(x: Any) -> Any:
    """What must be alike: all but a tensor's place and numbers."""
    if not isinstance(x, Tensor):
        return x
    return x.shape, x.dtype, x.device, x.layout, None if x.is_mkldnn else x.stride()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two of the same form are the same memory."""
    return one is other or (not one.is_mkldnn and one.data_ptr() == other.data_ptr())


def _storage(x: Tensor) -> int:
    """Where its memory begins; −1 for packed tensors, which are always copies."""
    return -1 if x.is_mkldnn else x.untyped_storage().data_ptr()
