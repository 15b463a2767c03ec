"""The built-in worlds, by the names that `data.world` knows them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmpg.recipes import addition, reviews
from lmpg.recipes.world import Recipe, WorldStage
from lmpg.sections import UserError

DEFAULT = "reviews"
WORLDS: dict[str, Recipe] = {"reviews": reviews, "addition": addition}


def chosen_world(given: Mapping[str, Any]) -> str:
    """The world that raw settings ask for; an unknown name is left to validation."""
    name = given.get("data", {}).get("world", DEFAULT)
    return name if name in WORLDS else DEFAULT


def world_stage(world: str, stage: str) -> WorldStage:
    """What a world has for an offline stage such as `sft`; UserError where it has nothing."""
    stages = WORLDS[world].STAGES
    if stage not in stages:
        having = [name for name, recipe in WORLDS.items() if stage in recipe.STAGES]
        raise UserError(
            f"data.world = {world} has nothing to train {stage} on; expected one of "
            f"{', '.join(having)}, or your own --model.path and --data.path"
        )
    return stages[stage]
