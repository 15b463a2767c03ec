"""The built-in worlds, by the names that `data.world` knows them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmpg.settings.by_name import ByName
from lmpg.settings.section import UserError

if TYPE_CHECKING:
    from lmpg.language.worlds.world import WorldModule, WorldStage

DEFAULT = "reviews"
PREFIX = "world:"
WORLDS: ByName[WorldModule] = ByName(
    {
        "reviews": "lmpg.language.worlds.reviews",
        "addition": "lmpg.language.worlds.addition",
        "guess": "lmpg.language.worlds.guess",
        "calculator": "lmpg.language.worlds.calculator",
        "rooms": "lmpg.language.worlds.rooms",
    }
)


def chosen_world(given: Mapping[str, Any]) -> str:
    """The world that raw settings ask for; an unknown name is left to validation."""
    name = given.get("data", {}).get("world", DEFAULT)
    return name if name in WORLDS else DEFAULT


def world_asked_for(given: Mapping[str, Any]) -> str | None:
    """The world whose data raw settings ask for: `data.path = world:NAME` goes with a model of
    the user's own; without a model the world gives that, too. None: all parts are the user's."""
    path = given.get("data", {}).get("path")
    if isinstance(path, str) and path.startswith(PREFIX):
        name = path.removeprefix(PREFIX)
        if name not in WORLDS:
            expected = ", ".join(PREFIX + known for known in WORLDS)
            raise UserError(f"data.path = {path}: no such world, expected one of {expected}")
        return name
    return chosen_world(given) if given.get("model", {}).get("path") is None else None


def world_stage(world: str, stage: str) -> WorldStage:
    """What a world has for an offline stage such as `sft`; UserError where it has nothing."""
    stages = WORLDS[world].STAGES
    if stage not in stages:
        having = [name for name, module in WORLDS.items() if stage in module.STAGES]
        raise UserError(
            f"data.world = {world} has nothing to train {stage} on; expected one of "
            f"{', '.join(having)}, or your own --model.path and --data.path"
        )
    return stages[stage]
