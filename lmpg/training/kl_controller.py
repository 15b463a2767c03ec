"""Controllers that hold a KL to its target by changing the coefficient of its penalty."""

from __future__ import annotations

from lmpg.functional.kl import doubled_or_halved, proportionally_adapted
from lmpg.training.settings import TARGETS
from lmpg.types import Algorithm


def adapted(
    algorithm: Algorithm, metrics: dict[str, float], num_responses: int
) -> dict[str, float]:
    """New values of the coefficients that have a target, after an iteration with these metrics."""
    found = {}
    for target, (coef, metric) in TARGETS.items():
        wanted = getattr(algorithm, target, None)
        if wanted is None:
            continue
        used, measured = getattr(algorithm, coef), metrics[metric]
        if target == "penalty_target":
            found[coef] = doubled_or_halved(used, measured, wanted)
        else:
            horizon: float = algorithm.kl_horizon  # type: ignore[attr-defined]
            counted = min(num_responses, horizon)
            found[coef] = proportionally_adapted(used, measured, wanted, counted, horizon)
    return found
