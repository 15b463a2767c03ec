"""Eligibility traces: how much each weight took part in the steps so far."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Trace = Literal["accumulating", "replacing"]


def traced(z: Tensor, gradient: Tensor, decay: float, kind: Trace) -> Tensor:
    """The trace [n] one step later, with decay = γλ.

    accumulating: z ← γλz + ∇ (Sutton & Barto 2018, equation 12.5). replacing: the components that
    the gradient touches become the gradient's, the others fade (Singh & Sutton 1996); meant for
    features that are mostly 0, as one-hot states: a gradient without zeros leaves no trace.
    """
    if kind == "replacing":
        return torch.where(gradient != 0, gradient, decay * z)
    return decay * z + gradient
