"""One forward pass for two uses: old log-probs before an update, and the update's first pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Entry:
    """A result, the inputs that it is of, and the versions of the weights at that time."""

    inputs: dict[str, Tensor]
    versions: list[int]
    result: Any


class ForwardReuse:
    """Caches one forward pass (with its autograd graph) made while recording old log-probs, so that
    the first minibatch can reuse it.

    An entry is used once, only for identical inputs and unchanged weights. Fused optimizers do not
    bump tensor versions, so an update must consume the cache before its first step.
    """

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)  # which owns this object
        self._recording = False
        self._entries: dict[str, _Entry] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Caches what is computed inside the block, and drops all earlier entries."""
        self._entries, self._recording = {}, True
        try:
            with torch.enable_grad():
                yield
        finally:
            self._recording = False

    def __call__(self, name: str, inputs: dict[str, Tensor], compute: Callable[[], Any]) -> Any:
        """compute(), or the entry `name` if it is of the same inputs and weights."""
        if self._recording:
            result = compute()
            self._entries[name] = _Entry(inputs, self._versions(), result)
            return result
        entry = self._entries.pop(name, None) if torch.is_grad_enabled() else None
        if entry and self._versions() == entry.versions and _equal(entry.inputs, inputs):
            return entry.result
        return compute()

    def _versions(self) -> list[int]:
        module = self._module()
        return [] if module is None else [p._version for p in module.parameters()]


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    def equal(a: Tensor, b: Tensor) -> bool:
        return a is b or (a.device == b.device and torch.equal(a, b))

    return one.keys() == other.keys() and all(equal(x, other[name]) for name, x in one.items())
