"""Objects of Python as settings: a name for each, and what it stands for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmpg.language.api.finished import Run
from lmpg.language.api.given_rewards import named_object, rewards_section
from lmpg.language.api.saving import SAVES, saves
from lmpg.language.models.paths import ADAPTER_IN_MEMORY
from lmpg.settings.raw import IN_MEMORY, RawSettings, as_in_yaml, with_lists
from lmpg.settings.section import Section, UserError
from lmpg.training.given import Given
from lmpg.training.on_step import OnStep

Parts = dict[str, Callable[[Path], object]]


def settings_and_objects(
    kind: type[Section],
    model: Any,
    tokenizer: Any,
    data: Any,
    rewards: Any,
    on_step: OnStep | None,
    sections: Mapping[str, Any],
) -> tuple[RawSettings, Given]:
    """The settings that a call of `lmpg.train` gives, with names for objects; and the objects."""
    parts: Parts = {}
    functions: dict[str, Callable] = {}
    given = {
        "model": _model_section(model, tokenizer, parts),
        "data": _data_section(data, parts),
        "rewards": rewards_section(rewards, parts, functions),
    }
    raw = {**{key: x for key, x in given.items() if x is not None}, **sections}
    if raw.get("environment") is not None:
        raw["environment"] = _environment_section(raw["environment"], functions)
    return with_lists(kind, as_in_yaml(raw)), Given(parts, functions, on_step)


def _model_section(model: Any, tokenizer: Any, parts: Parts) -> RawSettings | None:
    """The section `model`; models in memory are saved with the tokenizer that was given."""
    section = (
        dict(model) if isinstance(model, Mapping) else {} if model is None else {"path": model}
    )
    if tokenizer is not None:
        if section.get("tokenizer") is not None:
            raise UserError("tokenizer is given twice, by itself and in the section model")
        section["tokenizer"] = tokenizer
    tokenizer = section.get("tokenizer")
    for key in ("path", "reference", "teacher"):
        value = section.get(key)
        if isinstance(value, Run):
            value = section[key] = str(value.model_path)
        if value is None or isinstance(value, str | os.PathLike):
            continue
        if not _is_model(value):
            raise UserError(
                f"model.{key} is a {type(value).__name__}, expected a folder, a Hub id, or a model "
                "of transformers with its tokenizer beside it: model=…, tokenizer=…; or a Run"
            )
        if not _is_model(tokenizer) and (key != "path" or tokenizer is None):
            raise UserError(
                f"model.{key} is a {type(value).__name__} in memory, expected its tokenizer beside "
                "it: tokenizer=AutoTokenizer.from_pretrained(…)"
            )
        adapter = key == "path" and hasattr(value, "peft_config")
        section[key] = ADAPTER_IN_MEMORY if adapter else f"{IN_MEMORY}{_place(key)}"
        parts[section[key]] = saves(value, tokenizer if _is_model(tokenizer) else None)
    if _is_model(tokenizer):
        if str(section.get("path")).startswith(IN_MEMORY):
            del section["tokenizer"]
        else:
            section["tokenizer"] = f"{IN_MEMORY}tokenizer"
            parts[section["tokenizer"]] = saves(tokenizer, None)
    return section or None


def _environment_section(environment: Any, functions: dict[str, Callable]) -> RawSettings:
    """The section `environment`; classes, instances and tools that cannot be imported go into
    `functions`, by the names that the section has for them."""
    is_section = isinstance(environment, Mapping)
    section = dict(environment) if is_section else {"path": environment}
    if section.get("path") is not None:
        section["path"] = named_object(section["path"], functions)
    tools = section.get("tools")
    if tools is not None:
        listed = [tools] if isinstance(tools, str) or callable(tools) else list(tools)
        section["tools"] = [named_object(tool, functions) for tool in listed]
    return section


def _is_model(value: Any) -> bool:
    """Whether it is a model, or a tokenizer, of transformers or peft."""
    return hasattr(value, SAVES)


def _place(key: str) -> str:
    return "model" if key == "path" else key


def _data_section(data: Any, parts: Parts) -> RawSettings | None:
    """The section `data`; rows in memory are saved as files."""
    from lmpg.language.data.storage.given_rows import writer_of

    if data is None:
        return None
    is_section = isinstance(data, Mapping) and not hasattr(data, "save_to_disk")
    section = dict(data) if is_section else {"path": data}
    for key in ("path", "eval_path"):
        value = section.get(key)
        if value is not None and not isinstance(value, str | os.PathLike):
            name, write = writer_of(value, "data" if key == "path" else "data.eval_path")
            section[key] = f"{IN_MEMORY}{'' if key == 'path' else 'eval_'}{name}"
            parts[section[key]] = write
    return section
