"""Presets: YAML files that come with the package, found by their names wherever it is installed."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from lmpg.settings.hints import did_you_mean
from lmpg.settings.raw import RawSettings
from lmpg.settings.section import UserError
from lmpg.settings.yaml_files import read_yaml


def presets(kind: str) -> Path:
    """The folder with the YAML files of `kind`: `algorithms` or `gym`. UserError where it is
    missing, as a method would then train with other settings than those that it is known for."""
    folder = Path(str(files("lmpg").joinpath("presets", kind)))
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: lmpg's installation is damaged; install it again")
    return folder


def preset_names() -> list[str]:
    """Names of the presets for language models."""
    return sorted(path.stem for path in presets("algorithms").glob("*.yaml"))


def config_file(word: str) -> Path:
    """The file that `--config` means: a path, or the name of an environment's preset."""
    named = presets("gym") / f"{word}.yaml"
    return named if re.fullmatch(r"\w+", word) and named.is_file() else Path(word)


def named_preset(name: str, methods: list[str]) -> tuple[str, RawSettings]:
    """The method that `name` stands for (one of `methods`), and the settings of its preset.

    A preset's `algorithm.name` says which method it sets up; without one it is the method of the
    file's own name. A method needs no preset.
    """
    path = presets("algorithms") / f"{name}.yaml"
    known = sorted({*methods, *preset_names()})
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"unknown method {name!r}; {hint}expected one of {', '.join(known)}")
    values = read_yaml(path) if path.is_file() else {}
    section = dict(values.get("algorithm") or {})
    method = section.pop("name", name)
    if method not in methods:
        raise UserError(f"{path}: algorithm.name = {method!r}, expected one of {methods}")
    return method, {**values, "algorithm": section} if section else _without_algorithm(values)


def _without_algorithm(values: RawSettings) -> RawSettings:
    return {key: value for key, value in values.items() if key != "algorithm"}
