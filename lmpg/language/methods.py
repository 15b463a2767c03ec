"""Every method by its name: the class of its settings, its preset, and the program that trains with
it. The command line and the Python API begin here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmpg.algorithms import ALGORITHMS
from lmpg.language.missing import refuse_missing_paths
from lmpg.language.settings import LanguageSettings
from lmpg.language.stages import STAGES
from lmpg.language.suitable import suitable_settings, suitable_stage_settings
from lmpg.settings.presets import named_preset
from lmpg.settings.raw import RawSettings
from lmpg.settings.section import Section

if TYPE_CHECKING:
    from lmpg.training.given import Given


def methods() -> list[str]:
    """Names of all algorithms and stages; presets stand for one of them."""
    return [*ALGORITHMS, *STAGES]


def settings_class(method: str) -> type[Section]:
    """The settings of a method."""
    return STAGES[method] if method in STAGES else LanguageSettings[ALGORITHMS[method]]  # type: ignore[misc, return-value, valid-type]


def preset_below(name: str, given: RawSettings) -> RawSettings:
    """The settings that those `given` override: the preset `name` over what suits the run's
    world."""
    method, preset = named_preset(name, methods())
    if method in ALGORITHMS:
        return suitable_settings(ALGORITHMS[method], preset, given)
    return suitable_stage_settings(method, STAGES[method], preset, given)


def run_with(settings: Section, name: str, given: Given | None = None) -> Path:
    """The run that language settings describe, called `name`; returns its folder.

    given: the objects that settings name, where Python gives some.
    """
    refuse_missing_paths(settings, given.names if given else ())
    # imported here as they bring transformers along, for which a refusal need not wait
    from lmpg.language.program import train_language
    from lmpg.language.stages.program import train_stage
    from lmpg.training.given import NOTHING

    given = given or NOTHING
    if isinstance(settings, LanguageSettings):
        return train_language(settings, name, given=given)
    return train_stage(settings, name, given=given)  # type: ignore[arg-type]
