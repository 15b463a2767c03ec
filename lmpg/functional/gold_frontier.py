"""How a gold score follows the distance that optimising a proxy has gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Frontier(NamedTuple):
    """R(d) = start + d (α − β ln d) with d = √KL (arXiv 2210.10760, equation 2)."""

    start: float
    alpha: float
    beta: float

    def at(self, kl: float) -> float:
        """The gold score at a KL in nats."""
        d = math.sqrt(max(0.0, kl))
        return self.start + (d * (self.alpha - self.beta * math.log(d)) if d else 0.0)

    @property
    def peak(self) -> float | None:
        """The KL at which R is highest, exp(2 (α/β − 1)); None where it only rises or falls."""
        exponent = 2 * (self.alpha / self.beta - 1) if self.beta > 0 else math.inf
        return math.exp(exponent) if exponent < 50 else None


def frontier(kls: Sequence[float], golds: Sequence[float]) -> Frontier | None:
    """The least-squares fit; None where fewer than five points have a KL above 0."""
    d = torch.tensor(kls, dtype=torch.float64).clamp(min=0).sqrt()
    if int((d > 0).sum()) < 5:
        return None
    logs = torch.where(d > 0, d * d.clamp(min=1e-300).log(), 0)
    columns = torch.stack([torch.ones_like(d), d, -logs], 1)
    targets = torch.tensor(golds, dtype=torch.float64)[:, None]
    found = torch.linalg.lstsq(columns, targets, driver="gelsd").solution[:, 0]
    return Frontier(*found.tolist())
