"""Coefficients that change from step to step: steered to a target, or annealed.

An algorithm is frozen, so each change makes a new one, validated anew.
"""

from __future__ import annotations

from lmpg.functional.kl import doubled_or_halved, proportionally_adapted
from lmpg.sections import Section
from lmpg.training.settings import UpdateSettings
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


def annealed(
    algorithm: Algorithm, settings: UpdateSettings, step: int, total_steps: int
) -> Algorithm:
    """The algorithm of iteration `step` (from 1), with `update.anneal` on its way to 0."""
    left = 1 - (step - 1) / total_steps
    return with_fields(algorithm, {n: getattr(algorithm, n) * left for n in settings.anneal})


def with_fields(algorithm: Algorithm, changed: dict[str, float]) -> Algorithm:
    """The same algorithm with some fields changed, validated anew."""
    if not changed:
        return algorithm
    fields = algorithm.model_dump()  # type: ignore[attr-defined]
    return type(algorithm)(**{**fields, **changed})


def refuse_what_cannot_change(update: UpdateSettings, algorithm: Section) -> None:
    """ValueError where a coefficient that is to be annealed or steered cannot be."""
    for name in update.anneal:
        _refuse_to_anneal(name, algorithm)
    target = getattr(algorithm, "penalty_target", None)
    if target and update.epochs * update.rollout_size == update.minibatch_size:
        raise ValueError(
            f"algorithm.penalty_target = {target} with one optimizer step per rollout "
            "(update.epochs = 1, update.minibatch_size = update.rollout_size): the KL to the "
            "policy that sampled is 0 before it. Set update.epochs to 2 or more"
        )


def _refuse_to_anneal(name: str, algorithm: Section) -> None:
    values = algorithm.model_dump()
    steered = [coef for target, (coef, _) in TARGETS.items() if values.get(target) is not None]
    possible = [
        key
        for key, value in values.items()
        if isinstance(value, float)
        and value > 0
        and key not in steered
        and (key in ("clip", "clip_high", "value_clip") or key.endswith("_coef"))
    ]
    if name in possible:
        return
    why = "is steered to its target" if name in steered else "cannot be annealed"
    if name not in values:
        why = "does not exist"
    elif not values[name]:
        why = f"is {values[name]!r}"
    raise ValueError(
        f"update.anneal = {name}, but algorithm.{name} {why}; expected some of "
        f"{', '.join(possible)}"
    )
