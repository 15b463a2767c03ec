"""Looks for all that settings name, before any library that is slow to import."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from lmpg.language.data.rows import refuse_missing_file
from lmpg.language.models.paths import refuse_missing_folder
from lmpg.language.rewards.specs import parsed_spec
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.registry import PREFIX

MODELS = ("path", "reference", "teacher")


def refuse_missing_paths(settings: Any, to_come: Container[str] = ()) -> None:
    """UserError where a model, a data file or a reward that the settings name lies nowhere.

    settings: of a language run or of a stage. to_come: models that earlier stages will make.
    """
    models = {f"model.{name}": [getattr(settings.model, name)] for name in MODELS}
    if isinstance(settings, LanguageSettings):
        models["rewards.models"] = list(settings.rewards.models)
    for key, paths in models.items():
        for path in paths:
            if path and path not in to_come:
                refuse_missing_folder(key, path, "model")
    data = settings.data
    if data.path and not data.path.startswith(PREFIX):
        refuse_missing_file(data.path, "data.path")
    if data.eval_path:
        refuse_missing_file(data.eval_path, "data.eval_path")
    if isinstance(settings, LanguageSettings):
        for function in settings.rewards.functions:
            parsed_spec(function)
