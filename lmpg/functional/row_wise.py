"""Dataclasses of tensors that all start with dimension B: one row for each episode."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor


class RowWise:
    """Row-wise operations that all of them have."""

    def rows(self, index: Tensor):
        """The same object with only the rows in `index` (int64 [N]), in that order."""
        return self._map(lambda x: x.index_select(0, index.to(x.device)))

    def to(self, device: torch.device | str):
        """The same object with every tensor on `device`."""
        return self._map(lambda x: x.to(device))

    def as_steps(self):
        """Every step a row of its own: [B, T, …] → [B·T, 1, …]; for policies without memory."""
        return self._map(lambda x: x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:]))

    def _map(self, f):
        """The same object with `f` of every tensor that has rows."""
        changed = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, dict):
                changed[field.name] = {k: f(v) for k, v in value.items()}
            elif isinstance(value, Tensor) and value.ndim > 0:
                changed[field.name] = f(value)
        return replace(self, **changed)  # type: ignore[type-var]
