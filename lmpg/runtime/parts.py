"""Tensors of which each process holds a part, as `lmpg.runtime.sharding` shares them out.

Others go through everything in here as if it were not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmpg.settings.section import UserError


def is_shared_out(x: Any) -> bool:
    """Whether a tensor is shared out."""
    return hasattr(x, "full_tensor")


def mine(x: Tensor) -> Tensor:
    """This process's part of a tensor; all of one that is not shared out."""
    return x.to_local() if is_shared_out(x) else x  # type: ignore[attr-defined]


def whole(x: Tensor) -> Tensor:
    """All of a tensor that is shared out, on every process, which must all ask for it."""
    return x.full_tensor() if is_shared_out(x) else x  # type: ignore[attr-defined]


def all_whole(tensors: Sequence[Any]) -> list[Tensor]:
    """All of each of these tensors, which are shared out alike, as new copies on every process: one
    exchange for those of one type."""
    mesh = tensors[0].device_mesh
    count, group = mesh.size(mesh.ndim - 1), mesh.get_group(mesh.ndim - 1)
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        same = [x for x in tensors if x.dtype == dtype]
        # the last parts have fewer rows
        sizes = [-(-len(x) // count) * math.prod(x.shape[1:]) for x in same]
        flat = torch.empty(sum(sizes), dtype=dtype, device=mine(same[0]).device)
        for room, x in zip(flat.split(sizes), same):
            room[: mine(x).numel()] = mine(x).flatten()
        all_parts = flat.new_empty(count, len(flat))
        dist.all_gather(list(all_parts), flat, group)
        for parts, x in zip(all_parts.split(sizes, 1), same):
            found[id(x)] = parts.reshape(-1, *x.shape[1:])[: len(x)]
    return [found[id(x)] for x in tensors]


def all_say(found: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether all processes that share out `tensors` have found so, or this one where none do."""
    if not tensors or not is_shared_out(tensors[0]):
        return found
    mesh: Any = tensors[0].device_mesh  # type: ignore[attr-defined]
    least = torch.tensor(int(found), device=mesh.device_type)
    dist.all_reduce(least, dist.ReduceOp.MIN, group=mesh.get_group(mesh.ndim - 1))
    return bool(least)


def part_of(whole: Tensor, like: Any) -> Tensor:
    """What this process holds of a whole tensor that is to be shared out as `like` is."""
    if not is_shared_out(like) or is_shared_out(whole):
        return mine(whole)
    mesh = like.device_mesh
    parts = whole.chunk(mesh.size(mesh.ndim - 1))
    place = mesh.get_coordinate()[-1]
    return parts[place] if place < len(parts) else whole[:0]


@torch.no_grad()
def load_weights(weights: dict[str, nn.Parameter], state: dict[str, Tensor]) -> None:
    """Copy `state` into the weights of the same names and shapes; UserError where they differ."""
    wrong = [f"{name} is missing" for name in weights if name not in state]
    wrong += [f"{name} is unexpected" for name in state if name not in weights]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(p.shape)}"
        for name, p in weights.items()
        if name in state and state[name].shape != p.shape
    ]
    if wrong:
        raise UserError("the saved weights are not this policy's: " + "; ".join(wrong[:5]))
    for name, p in weights.items():
        mine(p).copy_(part_of(state[name], p))


def spread_as(like: Any, whole: Tensor) -> Tensor:
    """A tensor, whole or shared out, on the device of `like` and shared out as that is."""
    if not is_shared_out(like) or is_shared_out(whole):
        return whole.to(like.device)
    from torch.distributed.tensor import DTensor

    part = part_of(whole, like).to(like.device, copy=True)
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all numbers of all tensors together, the same on every process."""
    norm = nn.utils.get_total_norm([mine(x) for x in tensors])
    if not tensors or not is_shared_out(tensors[0]):
        return norm
    mesh = tensors[0].device_mesh  # type: ignore[attr-defined]
    square = norm.square()
    dist.all_reduce(square, group=mesh.get_group(mesh.ndim - 1))
    return square.sqrt()


@contextmanager
def exchanged(weights: dict[str, nn.Parameter], others: dict[str, Tensor]) -> Iterator[None]:
    """A block in which some of `weights` have the numbers of `others`, by name."""
    if not any(map(is_shared_out, weights.values())):
        kept = {name: weights[name].data for name in others}
        try:
            for name, x in others.items():
                weights[name].data = x
            yield
        finally:
            for name, x in kept.items():
                weights[name].data = x
        return
    with torch.no_grad():  # where a weight lies is known to more than its parameter
        kept = {name: mine(weights[name]).detach().clone() for name in others}
        for name, x in others.items():
            mine(weights[name]).copy_(mine(x))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, x in kept.items():
                mine(weights[name]).copy_(x)
