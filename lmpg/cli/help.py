"""--help of a settings class; tyro writes it."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from lmpg.algorithms import algorithm_name
from lmpg.cli.flags import number_of_words
from lmpg.settings.raw import RawSettings, is_list, is_section
from lmpg.settings.section import Section


def show_help(settings: type[Section], shown: RawSettings, names: Sequence[str]) -> None:
    """Print all settings with the values `shown`, and exit.

    names: of the methods that `--algorithm.name` may pick, where it may.
    """
    own = settings.model_fields.get("algorithm")
    more = (
        f"\n\n--algorithm.name NAME picks the method, one of {', '.join(names)}; the settings "
        f"below are those of {algorithm_name(own.annotation)}."  # type: ignore[union-attr, arg-type]
        if names
        else ""
    )
    origin = settings.__pydantic_generic_metadata__["origin"] or settings
    text = (
        f"{origin.__doc__}\n\n--config FILE reads settings from a YAML file with the same "
        f"names (sections with settings below them); flags win over it.{more}"
    )
    tyro.cli(_mirror(settings, shown), args=["--help"], description=text)


def _mirror(settings: type[BaseModel], shown: RawSettings) -> Any:
    """The settings class as a TypedDict whose keys may all be absent: tyro's view of it."""
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        value = shown.get(name)
        if is_section(field.annotation):
            section: Any = field.annotation
            mirror = _mirror(section, value if isinstance(value, dict) else {})
            text = (section.__doc__ or "").partition("\n")[0]
            fields[name] = Annotated[mirror, tyro.conf.arg(help=text)]
        else:
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
