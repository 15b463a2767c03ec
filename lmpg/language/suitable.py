"""Settings that suit a run where the user leaves them out, found without loading any model."""

from __future__ import annotations

from lmpg.language.data.reasoning import PREFIX
from lmpg.language.worlds.registry import WORLDS, world_asked_for, world_stage
from lmpg.settings.raw import RawSettings, merged
from lmpg.settings.section import Section


def suitable_settings(
    algorithm: type[Section], preset: RawSettings, given: RawSettings
) -> RawSettings:
    """`preset` over what suits the world that a run with these settings learns in; without a world,
    over the reward that belongs to the data and the passes that the algorithm can make.

    given: the user's own settings, which win over all that.
    """
    world = world_asked_for(merged(preset, given))
    if world is not None:
        return merged(WORLDS[world].preset(algorithm), preset)
    return merged(own_reward(given), passes(algorithm), preset)


def suitable_stage_settings(method: str, preset: RawSettings, given: RawSettings) -> RawSettings:
    """`preset` over what suits the world that the stage `method` learns in with these settings.

    given: the user's own settings, which win over all that.
    """
    world = world_asked_for(merged(preset, given))
    return preset if world is None else merged(world_stage(world, method).preset, preset)


def passes(algorithm: type[Section]) -> RawSettings:
    """One epoch for algorithms without ratios: their gradient is that of the policy that sampled,
    which is gone after the first pass."""
    return {} if "ratios" in algorithm().needs else {"update": {"epochs": 1}}  # type: ignore


def own_reward(given: RawSettings) -> RawSettings:
    """The reward that belongs to the data (reasoning-gym tasks), where the user names none."""
    source, rewards = given.get("data", {}).get("path"), given.get("rewards", {})
    if not str(source).startswith(PREFIX) or rewards.get("functions") or rewards.get("models"):
        return {}
    return {"rewards": {"functions": ["reasoning_gym"]}}
