"""What changes with the step: the learning rate and annealed coefficients."""

from __future__ import annotations

import math

from lmpg.training.kl_controller import with_fields
from lmpg.training.settings import OptimizerSettings, UpdateSettings
from lmpg.types import Algorithm


def annealed(
    algorithm: Algorithm, settings: UpdateSettings, step: int, total_steps: int
) -> Algorithm:
    """The algorithm of iteration `step` (from 1), with `update.anneal` on its way to 0."""
    left = 1 - (step - 1) / total_steps
    return with_fields(algorithm, {n: getattr(algorithm, n) * left for n in settings.anneal})


def scheduled(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 1): linear warm-up, then constant, linear or cosine."""
    rate, done = settings.learning_rate, min(1.0, (step - 1) / total_steps)
    if settings.schedule == "linear":
        rate *= 1 - done
    elif settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    return rate * min(1.0, step / settings.warmup_steps) if settings.warmup_steps else rate
