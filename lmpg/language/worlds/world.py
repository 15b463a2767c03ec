"""What a recipe makes: everything a run needs besides the algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmpg.language.data.prompts import Prompt

Judge = Callable[[list[Prompt], list[str]], dict[str, float]]


@dataclass(frozen=True)
class World:
    """A warm-started model, prompts, and the rewards that go with them.

    model_path: a save_pretrained folder with its tokenizer.
    train_rows, held_out_rows: dicts with `prompt` and the columns that rewards ask for.
    reward_functions, reward_models: as in the settings section `rewards`.
    judge: (prompts, completions) → figures that training never sees, for evaluation.
    facts: what goes into summary.json, such as the reward model's pair accuracy.
    """

    model_path: Path
    train_rows: list[dict[str, Any]]
    held_out_rows: list[dict[str, Any]]
    judge: Judge
    reward_functions: tuple[str, ...] = ()
    reward_models: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OfflineWorld:
    """A stage of a world as supervised or reward-model training finds it.

    model_path: what it starts from. Rows have the default columns of such data.
    prompt_rows: held-out prompts as a World has them, for samples to look at, and their judge.
    """

    model_path: Path
    train_rows: list[dict[str, Any]]
    held_out_rows: list[dict[str, Any]]
    prompt_rows: list[dict[str, Any]] = field(default_factory=list)
    judge: Judge | None = None


@dataclass(frozen=True)
class WorldStage:
    """An offline stage in a world: settings that suit it (nested, as in YAML), and its parts.

    build: from the model to start from, or None for the world's own.
    """

    preset: dict[str, Any]
    build: Callable[[Path | None], OfflineWorld]


class Recipe(Protocol):
    """A built-in world; a module with these is one."""

    STAGES: dict[str, WorldStage]

    def preset(self, algorithm: type) -> dict[str, Any]:
        """Settings (nested, as in YAML) that suit the world, for an algorithm's class."""
        ...

    def build(self, start: Path | None = None, rewards: bool = True) -> World:
        """The world, from the cache where it has been made before; with a model to start from
        instead of its own, or without rewards, where the user gives those."""
        ...
