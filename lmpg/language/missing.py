"""Looks for all that settings name, before any library that is slow to import."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from lmpg.language.data.rows import refuse_missing_file
from lmpg.language.environments.named import KEY, TOOLS_KEY, environment_spec, tool_spec
from lmpg.language.models.paths import refuse_missing_folder
from lmpg.language.rewards import specs
from lmpg.language.worlds.registry import PREFIX
from lmpg.settings.section import Problems

MODELS = ("path", "tokenizer", "reference", "teacher")


def refuse_missing_paths(settings: Any, to_come: Container[str] = ()) -> None:
    """UserError where models, data files or rewards that the settings name lie nowhere.

    settings: of a language run, of a stage, or of what is asked of a model. to_come: models that
    earlier stages will make, and what is given as an object.
    """
    problems = Problems()
    models = {f"model.{name}": [getattr(settings.model, name, None)] for name in MODELS}
    models["compare"] = [getattr(settings, "compare", None)]
    rewards = getattr(settings, "rewards", None)
    if rewards is not None:
        models["rewards.models"] = list(rewards.models)
    for key, paths in models.items():
        what = "tokenizer" if key == "model.tokenizer" else "model"
        revision = settings.model.revision if key == "model.path" else None
        for path in paths:
            if path and path not in to_come:
                with problems.gathered():
                    refuse_missing_folder(key, path, what, revision)
    data = settings.data
    path, eval_path = (getattr(data, name, None) for name in ("path", "eval_path"))
    if path and path not in to_come and not path.startswith(PREFIX):
        with problems.gathered():
            refuse_missing_file(path, "data.path", data.revision)
    if data.chat_template and not Path(data.chat_template).expanduser().is_file():
        problems.append(
            f"data.chat_template = {data.chat_template} is no file, expected one with a chat "
            "template (Jinja), such as a model's chat_template.jinja; mend the path"
        )
    if eval_path and eval_path not in to_come:
        with problems.gathered():
            refuse_missing_file(eval_path, "data.eval_path")
    for function in rewards.functions if rewards is not None else ():
        if function not in to_come:
            with problems.gathered():
                specs.refuse_missing_name(specs.parsed_spec(function), specs.KEY)
    environment = getattr(settings, "environment", None)
    if environment is not None:
        problems.extend(_of_environment(environment, to_come))
    problems.refuse()


def _of_environment(settings: Any, to_come: Container[str]) -> Problems:
    """What is wrong with the names of an environment and of tools."""
    problems = Problems()
    named = [(settings.path, environment_spec, KEY)]
    named += [(x, tool_spec, TOOLS_KEY) for x in settings.tools]
    for text, parsed, key in named:
        if text is not None and text not in to_come:
            with problems.gathered():
                specs.refuse_missing_name(parsed(text), key)
    return problems
