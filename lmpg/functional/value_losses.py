"""Per-step losses of the critic."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_error(values: Tensor, returns: Tensor) -> Tensor:
    """½ (V − R)²."""
    errors = values - returns
    return 0.5 * errors * errors


def clipped_squared_error(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> Tensor:
    """½ max((V − R)², (V_old + clip(V − V_old, ±clip) − R)²), as in OpenAI baselines' ppo2.

    The maximum only removes gradient from steps that moved towards R past the clip; a step that
    moved away from R keeps its full gradient.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
