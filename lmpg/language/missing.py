"""Looks for all that settings name, before any library that is slow to import."""

from __future__ import annotations

from collections.abc import Container, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmpg.language.data.rows import refuse_missing_file
from lmpg.language.environments.named import KEY, TOOLS_KEY, environment_spec, tool_spec
from lmpg.language.models.paths import refuse_missing_folder
from lmpg.language.rewards import specs
from lmpg.language.worlds.registry import PREFIX
from lmpg.settings.section import Problems

_BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
"""A package, and the extra of lmpg that brings it."""
_WITHOUT = "leave model.quantisation out"
MODELS = ("path", "tokenizer", "reference", "teacher")


def refuse_missing_paths(settings: Any, to_come: Container[str] = ()) -> None:
    """UserError where models, data files, rewards or packages that the settings need are missing.

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
    data, environment = settings.data, getattr(settings, "environment", None)
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
    if environment is not None:
        problems.extend(_of_environment(environment, to_come))
    problems.extend(_missing_packages(settings))
    problems.refuse()


def _missing_packages(settings: Any) -> Iterator[str]:
    """What is asked for that an extra of lmpg brings; a model need not be loaded to know it."""
    lora, update = getattr(settings.model, "lora", None), getattr(settings, "update", None)
    packed = getattr(settings.model, "quantisation", "none")
    eight = getattr(update, "optimizer", None) == "adamw_8bit"
    for asked, said, package, extra, fix in (
        (eight, "update.optimizer = adamw_8bit", *_BITSANDBYTES, "take update.optimizer adafactor"),
        (packed != "none", f"model.quantisation = {packed}", *_BITSANDBYTES, _WITHOUT),
        (lora and lora.rank, "model.lora.rank", "peft", "lora", "set model.lora.rank to 0"),
    ):
        if asked and find_spec(package) is None:
            yield (
                f"{said} needs {package}, which is not installed: pip install 'lmpg[{extra}]', or "
                f"{fix}"
            )


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
