"""Settings of gymnasium runs with a textbook method, and of all by the name of their algorithm."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import model_validator

from lmpg.algorithms import ALGORITHMS, algorithm_name
from lmpg.classic import METHODS
from lmpg.config import GymSettings, refuse_uneven_rows
from lmpg.environments.settings import EnvSettings
from lmpg.models.settings import PolicySettings
from lmpg.sections import Section
from lmpg.training.settings import BatchSettings, GymEvaluationSettings, GymRunSettings

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
