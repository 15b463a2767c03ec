"""Annealing: coefficients of the algorithm that go down to 0 over a run.

An algorithm is frozen, so each change makes a new one, validated anew.
"""

from __future__ import annotations

from lmpg.training.settings import AnyUpdateSettings
from lmpg.types import Algorithm


def annealed(
    algorithm: Algorithm, settings: AnyUpdateSettings, iteration: int, total_steps: int
) -> Algorithm:
    """The algorithm of `iteration` (from 1): the fields in `update.anneal` go linearly to 0."""
    left = 1 - (iteration - 1) / total_steps
    return with_fields(algorithm, {n: getattr(algorithm, n) * left for n in settings.anneal})


def with_fields(algorithm: Algorithm, changed: dict[str, float]) -> Algorithm:
    """The same algorithm with some fields changed, validated anew."""
    if not changed:
        return algorithm
    fields = algorithm.model_dump()  # type: ignore[attr-defined]
    return type(algorithm)(**{**fields, **changed})
