"""A built-in world: the one that settings ask for, and the settings that it completes."""

from __future__ import annotations

from pathlib import Path

from lmpg.language.models.settings import ModelSettings
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.made_by_main import made_by_main
from lmpg.language.worlds.registry import WORLDS, world_asked_for
from lmpg.language.worlds.world import World
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError


def built_world(settings: LanguageSettings, processes: Processes) -> World | None:
    """The built-in world that the settings ask for, made by the main process."""
    name = world_asked_for(settings.model_dump())
    if name is None:
        return None
    start = Path(settings.model.path) if settings.model.path else None
    own_rewards = bool(settings.rewards.functions or settings.rewards.models)
    if processes.is_main:
        print(f"built-in world: {name} (data.world)", flush=True)

    learns = "teacher" in settings.algorithm.needs and not settings.model.teacher

    def build() -> World:
        world = WORLDS[name].build(start, not own_rewards)
        if learns and world.teacher is not None:
            world.teacher()
        return world

    return made_by_main(processes, build)


def with_world(settings: LanguageSettings, world: World) -> LanguageSettings:
    """`settings` with the world's model, and with its rewards where the user gives none."""
    model = {**settings.model.model_dump(), "path": str(world.model_path)}
    if "teacher" in settings.algorithm.needs and not settings.model.teacher:
        if world.teacher is None:
            raise UserError(
                f"data.world = {settings.data.world} has no teacher, expected one. Give "
                "--model.teacher PATH, or take --data.world addition"
            )
        model["teacher"] = str(world.teacher())
    rewards = settings.rewards.model_dump()
    if not (settings.rewards.functions or settings.rewards.models):
        rewards |= {"functions": world.reward_functions, "models": world.reward_models}
    return settings.model_copy(
        update={"model": ModelSettings(**model), "rewards": RewardSettings(**rewards)}
    )
