"""All settings of a class, or some of them, with their descriptions; tyro writes them."""

from __future__ import annotations

from collections.abc import Collection
from types import NoneType
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from lmpg.cli.flags import number_of_words
from lmpg.settings.raw import RawSettings, is_list, is_section
from lmpg.settings.section import Section


def print_settings(
    settings: type[Section], shown: RawSettings, paths: Collection[str], text: str, program: str
) -> None:
    """Print the settings at these dotted paths with the values `shown`, and exit.

    text: above them. program: what the command line begins with.
    """
    mirror = _mirror(settings, shown, paths, "")
    tyro.cli(mirror, args=["--help"], description=text, prog=program)


def _mirror(
    settings: type[BaseModel], shown: RawSettings, paths: Collection[str], prefix: str
) -> Any:
    """The settings class as a TypedDict whose keys may all be absent: tyro's view of it."""
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        value, path = shown.get(name), f"{prefix}{name}"
        if is_section(field.annotation):
            if not any(other.startswith(f"{path}.") for other in paths):
                continue
            section: Any = field.annotation
            inner = value if isinstance(value, dict) else {}
            mirror = _mirror(section, inner, paths, f"{path}.")
            text = (section.__doc__ or "").partition("\n")[0]
            fields[name] = Annotated[mirror, tyro.conf.arg(help=text)]
        elif path in paths:
            fields[name] = _leaf(field, value)
    return TypedDict(settings.__name__.partition("[")[0], fields, total=False)  # type: ignore


def _leaf(field: FieldInfo, shown: Any) -> Any:
    """A flag's type for tyro: how many words it takes, and what --help says."""
    spec: Any = PrimitiveConstructorSpec(
        nargs=number_of_words(field),
        metavar=_metavar(field.annotation),
        instance_from_str=lambda words: words,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
    default = " ".join(map(str, shown)) or "none" if isinstance(shown, tuple | list) else shown
    arg = tyro.conf.arg(help=field.description, help_behavior_hint=f"(default: {default})")
    return Annotated[Any, spec, arg]


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if is_list(annotation):
        return f"[{_metavar(get_args(annotation)[0])} ...]"
    if get_origin(annotation) is dict:
        return "'{key: value}'"
    if NoneType in get_args(annotation):
        return "|".join(_metavar(a) for a in get_args(annotation))
    names = {bool: "[True|False]", int: "INT", float: "FLOAT", str: "STR", NoneType: "None"}
    return names.get(annotation, "VALUE")
