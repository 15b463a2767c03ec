"""Settings of gymnasium runs with a textbook method, and of all by the name of their algorithm."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import model_validator

from lmpg.algorithms import ALGORITHMS, algorithm_name
from lmpg.gym.classic import METHODS
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.settings import PolicySettings
from lmpg.language.settings import A
from lmpg.runs.settings import (
    GymEvaluationSettings,
    GymRunSettings,
)
from lmpg.settings.section import Section
from lmpg.training.checks import refuse_clip_fraction, refuse_critic_rate, refuse_what_cannot_change
from lmpg.training.settings import BatchSettings, UpdateSettings


class GymSettings(Section, Generic[A]):
    """Train an agent in a gymnasium environment with the same algorithms."""

    env: EnvSettings = EnvSettings()
    policy: PolicySettings = PolicySettings()
    algorithm: A
    update: UpdateSettings = UpdateSettings()
    evaluation: GymEvaluationSettings = GymEvaluationSettings()
    run: GymRunSettings = GymRunSettings()

    @model_validator(mode="after")
    def _whole_rows(self) -> GymSettings:
        refuse_uneven_rows(self.update.rollout_size, self.env.num_envs)
        return self

    @model_validator(mode="after")
    def _no_language_only_parts(self) -> GymSettings:
        needs: frozenset[str] = getattr(self.algorithm, "needs", frozenset())
        if getattr(self.algorithm, "group_size", 1) > 1 or "greedy" in needs:
            name = algorithm_name(type(self.algorithm))
            raise ValueError(
                f"algorithm.name = {name} compares several responses to one prompt, which an "
                "environment does not have. Set algorithm.name to one without groups, as ppo"
            )
        refuse_what_cannot_change(self.update, self.algorithm)
        refuse_clip_fraction(self.update, self.algorithm)
        refuse_critic_rate(self.update, needs, algorithm_name(type(self.algorithm)))
        for key, single in (("reduction", "token_mean"), ("ratio", "token")):
            value = getattr(self.algorithm, key, single)
            if value != single:
                raise ValueError(
                    f"algorithm.{key} = {value}, but environment steps are learned from one by "
                    f"one, in minibatches that know no episode. Set algorithm.{key} to {single}"
                )
        if "reference" in needs:
            raise ValueError(
                "algorithm.kl_coef is not 0, but an environment has no reference policy to stay "
                "close to. Set algorithm.kl_coef to 0"
            )
        return self


def refuse_uneven_rows(rollout_size: int, num_envs: int) -> None:
    """ValueError where some environments would have to step more often than others."""
    if rollout_size % num_envs:
        raise ValueError(
            f"update.rollout_size = {rollout_size} is not a multiple of env.num_envs = "
            f"{num_envs}; every environment steps equally often. "
            f"Set env.num_envs to a divisor of {rollout_size}"
        )


M = TypeVar("M", bound=Section)


class TextbookSettings(Section, Generic[M]):
    """Train an agent in a gymnasium environment with a method of the textbook."""

    env: EnvSettings = EnvSettings()
    policy: PolicySettings = PolicySettings()
    algorithm: M
    update: BatchSettings = BatchSettings()
    evaluation: GymEvaluationSettings = GymEvaluationSettings()
    run: GymRunSettings = GymRunSettings()

    @model_validator(mode="after")
    def _one_life(self) -> TextbookSettings:
        if getattr(self.algorithm, "online", False) and self.env.num_envs != 1:
            raise ValueError(
                f"env.num_envs = {self.env.num_envs}, but algorithm.name = "
                f"{algorithm_name(type(self.algorithm))} learns step by step in one environment. "
                "Set env.num_envs to 1"
            )
        refuse_uneven_rows(self.update.rollout_size, self.env.num_envs)
        return self


# each on one line: pydantic looks for docstrings from the line on that makes a class
_SHARED: Any = {name: GymSettings[a] for name, a in ALGORITHMS.items()}  # type: ignore[valid-type]

_OWN: Any = {name: TextbookSettings[m] for name, m in METHODS.items()}  # type: ignore[valid-type]

GYM_METHODS: dict[str, type[Any]] = {**_SHARED, **_OWN}
"""What `algorithm.name` makes of a run in an environment."""
