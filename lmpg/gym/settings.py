"""Settings of gymnasium runs, by the name of their method, and the presets that lie below them."""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

from pydantic import model_validator

from lmpg.algorithms import ALGORITHMS, algorithm_name
from lmpg.gym.classic import METHODS
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runs.settings import GymEvaluationSettings, GymRunSettings
from lmpg.settings.presets import presets
from lmpg.settings.raw import RawSettings, merged, paths_of
from lmpg.settings.section import Section, UserError
from lmpg.settings.yaml_files import read_yaml
from lmpg.training.settings import (
    AnyUpdateSettings,
    BatchSettings,
    refuse_clip_fraction,
    refuse_critic_settings,
    refuse_nothing_to_compare,
    refuse_settings_of_turns,
    refuse_what_cannot_change,
)

A = TypeVar("A", bound=Section)
M = TypeVar("M", bound=Section)


class GymSettings(Section, Generic[A]):
    """Train an agent in a gymnasium environment with the same algorithms."""

    env: EnvSettings = EnvSettings()
    policy: PolicySettings = PolicySettings()
    algorithm: A
    update: AnyUpdateSettings = AnyUpdateSettings()
    evaluation: GymEvaluationSettings = GymEvaluationSettings()
    run: GymRunSettings = GymRunSettings()

    @model_validator(mode="after")
    def _require_equally_many_steps_per_environment(self) -> GymSettings:
        refuse_uneven_rows(self.update.rollout_size, self.env.num_envs)
        return self

    @model_validator(mode="after")
    def _refuse_what_needs_a_language_model(self) -> GymSettings:
        if self.update.microbatch_tokens == "auto":
            raise ValueError(
                "update.microbatch_tokens = auto, but an environment's steps are no tokens. Leave "
                "it out, or set update.microbatch_size"
            )
        needs: frozenset[str] = getattr(self.algorithm, "needs", frozenset())
        if getattr(self.algorithm, "group_size", 1) > 1 or "greedy" in needs:
            name = algorithm_name(type(self.algorithm))
            raise ValueError(
                f"algorithm.name = {name} compares several responses to one prompt, which an "
                "environment does not have. Set algorithm.name to one without groups, as ppo"
            )
        name = algorithm_name(type(self.algorithm))
        refuse_what_cannot_change(self.update, self.algorithm)
        refuse_clip_fraction(self.update, self.algorithm, name)
        iterations = -(-self.run.total_timesteps // self.update.rollout_size)
        refuse_critic_settings(self.update, needs, name, iterations)
        refuse_nothing_to_compare(self.update, self.algorithm, name, alike=True)
        steps = "every step of an environment is a turn of its own here. Set algorithm.gamma, lam"
        refuse_settings_of_turns(self.algorithm, steps)
        of_steps = {"reduction": "token_mean", "ratio": "token", "lam_alpha": None}
        for key, single in of_steps.items():
            value = getattr(self.algorithm, key, single)
            if value != single:
                raise ValueError(
                    f"algorithm.{key} = {value}, but environment steps are learned from one by "
                    "one, in rollouts and minibatches that cut episodes. Set "
                    f"algorithm.{key} to {'none' if single is None else single}"
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


class TextbookSettings(Section, Generic[M]):
    """Train an agent in a gymnasium environment with a method of the textbook."""

    env: EnvSettings = EnvSettings()
    policy: PolicySettings = PolicySettings()
    algorithm: M
    update: BatchSettings = BatchSettings()
    evaluation: GymEvaluationSettings = GymEvaluationSettings()
    run: GymRunSettings = GymRunSettings()

    @model_validator(mode="after")
    def _require_one_environment_for_incremental_methods(self) -> TextbookSettings:
        if getattr(self.algorithm, "incremental", False) and self.env.num_envs != 1:
            raise ValueError(
                f"env.num_envs = {self.env.num_envs}, but algorithm.name = "
                f"{algorithm_name(type(self.algorithm))} learns step by step in one environment. "
                "Set env.num_envs to 1"
            )
        refuse_uneven_rows(self.update.rollout_size, self.env.num_envs)
        return self


_ALONE = [name for name, a in ALGORITHMS.items() if "teacher" not in a().needs]  # type: ignore[attr-defined]

GYM_METHODS = [*_ALONE, *METHODS]
"""What `algorithm.name` may be in an environment, which has no teacher."""


def gym_settings_class(name: str | None) -> type[Any]:
    """The settings of the method `name`, of ppo where there is none; UserError for unknown ones."""
    name = name or "ppo"
    if name not in GYM_METHODS:
        raise UserError(f"algorithm.name = {name!r}: expected one of {', '.join(GYM_METHODS)}")
    # made on one line, as pydantic looks for docstrings from there on, and only when asked for,
    # as that takes a while
    if name in METHODS:
        return TextbookSettings[METHODS[name]]  # type: ignore[valid-type]
    return GymSettings[ALGORITHMS[name]]  # type: ignore[misc, valid-type]


def preset_for(
    settings: type[Any], given: RawSettings, own_file: bool = False
) -> tuple[RawSettings, str]:
    """What lies below the `given` settings of a run, and a line that tells where it comes from.

    default.yaml of lmpg/presets/gym, and over it the file for the method and the environment
    (METHOD_ENV.yaml), or PPO's. own_file: the user has a file that stands instead of the latter.
    """
    folder = presets("gym")
    found = read_yaml(folder / "default.yaml")
    env_id = (given.get("env") or {}).get("id", found["env"]["id"])
    if own_file:
        return fitting(settings, found), ""
    method = algorithm_name(settings.model_fields["algorithm"].annotation)
    own = [folder / f"{name}_{file_stem(env_id)}.yaml" for name in (method, "ppo")]
    known = next((path for path in own if path.is_file()), None)
    if known is None:
        return fitting(settings, found), f"no settings for {env_id} in {folder}: general ones"
    found = merged(found, read_yaml(known))
    return fitting(settings, found), f"settings for {env_id} from {known}"


def file_stem(env_id: str) -> str:
    """CartPole-v1 → cartpole, lmpg/Corridor-v0 → corridor."""
    name = re.sub(r"-v\d+$", "", env_id.rpartition("/")[2].rpartition(":")[2])
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def fitting(settings: type[Any], values: RawSettings) -> RawSettings:
    """A preset reduced to the settings that a method has, as most presets are written for PPO.

    An algorithm without ratios gets one epoch: its gradient is that of the policy that acted, which
    is gone after the first pass. A method that learns step by step gets a single environment.
    """
    paths = set(paths_of(settings))
    kept = {
        section: {k: v for k, v in fields.items() if f"{section}.{k}" in paths}
        for section, fields in values.items()
    }
    algorithm: Any = settings.model_fields["algorithm"].annotation
    if getattr(algorithm, "incremental", False):
        return merged(kept, {"env": {"num_envs": 1}})
    its_own = values.get("algorithm", {}).get("name") == algorithm_name(algorithm)
    if "update.epochs" in paths and not its_own and "ratios" not in algorithm().needs:
        return merged(kept, {"update": {"epochs": 1}})
    return kept
