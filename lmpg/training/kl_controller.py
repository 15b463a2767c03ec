"""Coefficients that change from step to step: steered to a target, or annealed.

An algorithm is frozen, so each change makes a new one, validated anew.
"""

from __future__ import annotations

from lmpg.functional.kl import doubled_or_halved, proportionally_adapted
from lmpg.types import Algorithm

# algorithm's target → (what it steers, the metric that is held to it)
TARGETS = {
    "kl_target": ("kl_coef", "objective/kl"),
    "penalty_target": ("penalty_coef", "policy/last_kl"),
}


def steered(
    algorithm: Algorithm, metrics: dict[str, float], num_responses: int
) -> dict[str, float]:
    """New values of the coefficients that have a target, after a step with these metrics."""
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


def with_fields(algorithm: Algorithm, changed: dict[str, float]) -> Algorithm:
    """The same algorithm with some fields changed, validated anew."""
    if not changed:
        return algorithm
    fields = algorithm.model_dump()  # type: ignore[attr-defined]
    return type(algorithm)(**{**fields, **changed})
