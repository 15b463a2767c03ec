"""Looks for all that settings name, before any library that is slow to import."""

from __future__ import annotations

from typing import Any

from lmpg.language.data.rows import refuse_missing_file
from lmpg.language.models.paths import refuse_missing_folder
from lmpg.language.rewards.specs import parsed_spec
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.registry import PREFIX


def refuse_missing_paths(settings: Any) -> None:
    """UserError where a model, a data file or a reward that the settings name lies nowhere.

    settings: of a language run or of a stage.
    """
    for name in ("path", "reference", "teacher"):
        if path := getattr(settings.model, name):
            refuse_missing_folder(f"model.{name}", path, "model")
    data = settings.data
    if data.path and not data.path.startswith(PREFIX):
        refuse_missing_file(data.path, "data.path")
    if data.eval_path:
        refuse_missing_file(data.eval_path, "data.eval_path")
    if isinstance(settings, LanguageSettings):
        for function in settings.rewards.functions:
            parsed_spec(function)
        for model in settings.rewards.models:
            refuse_missing_folder("rewards.models", model, "model")
