"""Presets: the YAML files below configs/, such as `configs/algorithms/NAME.yaml`."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from lmpg.settings.raw import RawSettings, read_yaml
from lmpg.settings.section import UserError

# beside the package in a checkout, else where the wheel put them
_CONFIGS = [Path(__file__).parents[2] / "configs", Path(sys.prefix) / "share" / "lmpg"]


def configs(kind: str) -> Path:
    """The folder with the YAML files of `kind`: `algorithms` or `gym`."""
    return next((c / kind for c in _CONFIGS if (c / kind).is_dir()), _CONFIGS[0] / kind)


def preset_names() -> list[str]:
    """Names of the presets in configs/algorithms."""
    return sorted(path.stem for path in configs("algorithms").glob("*.yaml"))


def named_preset(name: str, methods: list[str]) -> tuple[str, RawSettings]:
    """The method that `name` stands for (one of `methods`), and the settings of its preset.

    A preset's `algorithm.name` says which method it sets up; without one it is the method of the
    file's own name. A method needs no preset.
    """
    path = configs("algorithms") / f"{name}.yaml"
    known = sorted({*methods, *preset_names()})
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown method {name!r}; {hint}expected one of {', '.join(known)}")
    values = read_yaml(path) if path.is_file() else {}
    section = dict(values.get("algorithm") or {})
    method = section.pop("name", name)
    if method not in methods:
        raise UserError(f"{path}: algorithm.name = {method!r}, expected one of {methods}")
    return method, {**values, "algorithm": section} if section else _without_algorithm(values)


def _without_algorithm(values: RawSettings) -> RawSettings:
    return {key: value for key, value in values.items() if key != "algorithm"}
