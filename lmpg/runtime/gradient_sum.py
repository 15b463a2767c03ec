"""Gradients summed over processes while the backward pass goes on.

Parameters are dealt into buckets, the last ones first, as their gradients come first. Each bucket
is sent as soon as it is full, in the same order everywhere; while it travels the pass goes on (as
in torch's DistributedDataParallel, arXiv 2006.15704). It is a sum and no mean: the weights of a
loss count the rows of all processes, so that their number changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 25 * 2**20
"""Bytes from which a bucket is sent: fewer wait for one another, more have less to overlap with."""


class GradientSum:
    """The sum of the gradients of these parameters, over all processes."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], size: int = BUCKET) -> None:
        self._buckets = buckets(parameters, size)
        self._bucket_of = {p: i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._begin()

    @contextmanager
    def overlapped(self) -> Iterator[None]:
        """The last backward pass before `finish`: gradients are sent as they come."""
        self._begin()
        hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._bucket_of]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> None:
        """Send what has not been sent, and wait for all: every gradient is the sum then. One that
        is not there counts as 0; all processes come here."""
        while len(self._sent) < len(self._buckets):
            self._send()
        for bucket, (work, flat) in zip(self._buckets, self._sent):
            work.wait()
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket])):
                p.grad = part.view_as(p)
        self._begin()

    def _begin(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent: list[tuple[dist.Work, Tensor]] = []

    def _arrived(self, parameter: torch.Tensor) -> None:
        number = self._bucket_of[parameter]  # type: ignore[index]
        if number < len(self._sent):
            raise RuntimeError("a gradient came a second time, after its bucket had been sent")
        self._missing[number] -= 1
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        for p in bucket:  # the bucket holds it
            p.grad = None
        self._sent.append((dist.all_reduce(flat, async_op=True), flat))


def buckets(parameters: Sequence[torch.nn.Parameter], size: int) -> list[list[torch.nn.Parameter]]:
    """The parameters from the last to the first, in parts of `size` bytes or one parameter more,
    each of one type on one device."""
    found: list[list[torch.nn.Parameter]] = []
    room = 0
    for p in reversed(parameters):
        alike = found and (found[-1][0].dtype, found[-1][0].device) == (p.dtype, p.device)
        if not alike or room <= 0:
            found.append([])
            room = size
        found[-1].append(p)
        room -= p.nbytes
    return found
