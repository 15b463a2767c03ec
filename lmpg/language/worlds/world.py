"""What a built-in world gives a run: a model, data, rewards, and a metric for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmpg.language.data.prompts import EvalMetric


@dataclass(frozen=True)
class World:
    """A warm-started model, prompts, and the rewards that go with them.

    model_path: a save_pretrained folder with its tokenizer.
    train_rows, held_out_rows: dicts with `prompt` and the columns that rewards ask for.
    reward_functions, reward_models: as in the settings section `rewards`.
    eval_metric: for evaluation alone, training never sees it.
    teacher: makes the folder of a better model with the same tokenizer, for distillation.
    facts: numbers about the world for summary.json, such as the reward model's pair accuracy.
    """

    model_path: Path
    train_rows: list[dict[str, Any]]
    held_out_rows: list[dict[str, Any]]
    eval_metric: EvalMetric
    reward_functions: tuple[str, ...] = ()
    reward_models: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    teacher: Callable[[], Path] | None = None


@dataclass(frozen=True)
class OfflineWorld:
    """What a built-in world gives to offline training: a model to start from, and data.

    Rows have the default columns of such data. prompt_rows: held-out prompts as in a World, to
    sample responses to; eval_metric: the metric of these.
    """

    model_path: Path
    train_rows: list[dict[str, Any]]
    held_out_rows: list[dict[str, Any]]
    prompt_rows: list[dict[str, Any]] = field(default_factory=list)
    eval_metric: EvalMetric | None = None


@dataclass(frozen=True)
class WorldStage:
    """What a world has for one offline stage: settings that suit it (nested, as in YAML), and a
    function that makes its data; that takes the model to start from, None for the world's own."""

    preset: dict[str, Any]
    build: Callable[[Path | None], OfflineWorld]


class WorldModule(Protocol):
    """A module that is a built-in world, such as `addition`."""

    STAGES: dict[str, WorldStage]

    def preset(self, algorithm: type) -> dict[str, Any]:
        """Settings (nested, as in YAML) that suit the world, for an algorithm's class."""
        ...

    def build(self, start: Path | None = None, rewards: bool = True) -> World:
        """The world, from the cache where it has been made before; with a model to start from
        instead of its own, or without rewards, where the user gives those."""
        ...
