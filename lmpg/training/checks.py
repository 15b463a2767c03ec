"""Refuses settings of an update that the algorithm cannot use."""

from __future__ import annotations

from lmpg.algorithms import algorithm_name
from lmpg.settings.section import Section
from lmpg.training.kl_controller import TARGETS
from lmpg.training.settings import UpdateSettings


def refuse_critic_rate(update: UpdateSettings, needs: frozenset[str], name: str) -> None:
    """ValueError where the critic is given a learning rate, but there is none."""
    if update.critic_learning_rate is not None and "critic" not in needs:
        raise ValueError(
            f"update.critic_learning_rate = {update.critic_learning_rate}, but algorithm.name = "
            f"{name} has no critic. Leave it out, or take an algorithm with a critic, as ppo"
        )


def refuse_clip_fraction(update: UpdateSettings, algorithm: Section) -> None:
    """ValueError where an update is to end when most steps are clipped, but none ever is."""
    if update.target_clip_fraction is not None and getattr(algorithm, "clip", None) is None:
        raise ValueError(
            f"update.target_clip_fraction = {update.target_clip_fraction}, but algorithm.name = "
            f"{algorithm_name(type(algorithm))} clips nothing here. Leave it out, set "
            "update.target_kl instead, or take an algorithm with algorithm.clip, as ppo"
        )


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
