"""Train with any method by its name: an algorithm, a stage, or a preset of one."""

from __future__ import annotations

from collections.abc import Sequence

from lmpg.algorithms import ALGORITHMS
from lmpg.language.program import language_settings, train_language
from lmpg.language.settings import LanguageSettings
from lmpg.language.stages import STAGES
from lmpg.language.stages.program import stage_settings, train_stage
from lmpg.settings.presets import named_preset
from lmpg.settings.section import Section


def methods() -> list[str]:
    """Names of all algorithms and stages; presets stand for one of them."""
    return [*ALGORITHMS, *STAGES]


def train(name: str, argv: Sequence[str] | None = None) -> None:
    """Train with the method or preset `name`; `argv` holds its flags (None: the command line's)."""
    method, preset = named_preset(name, methods())
    if method in ALGORITHMS:
        train_language(name, ALGORITHMS[method], preset, argv)
    else:
        train_stage(name, method, preset, argv)


def settings_class(method: str) -> type[Section]:
    """The settings of a method."""
    if method in STAGES:
        return STAGES[method].settings
    return LanguageSettings[ALGORITHMS[method]]  # type: ignore


def settings_of(name: str, argv: Sequence[str]) -> Section:
    """The settings that `train` would train with; bad ones are refused."""
    method, preset = named_preset(name, methods())
    if method in ALGORITHMS:
        return language_settings(ALGORITHMS[method], preset, argv)
    return stage_settings(method, preset, argv)
