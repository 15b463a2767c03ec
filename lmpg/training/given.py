"""What a program is given as objects of Python, where settings hold text: models, data, functions.

Settings call them `memory:NAME`. Models and data are written into the run's folder, where the run
reads them as it does what a path names, and finds them again when it is resumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lmpg.runs import fingerprints
from lmpg.runs.files import TEMPORARY, UNWRITABLE, replace_folder
from lmpg.runs.folder import GIVEN, RunFolder
from lmpg.runtime.processes import Processes
from lmpg.settings.raw import IN_MEMORY
from lmpg.settings.section import Section, UserError
from lmpg.training.disks.copied_folders import copied
from lmpg.training.on_step import OnStep

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Given:
    """Objects by the names that settings have for them.

    parts: name → writes the object to a path, as a file or folder. functions: rewards that cannot
    be imported. on_step: is called after every iteration, by the main process.
    """

    parts: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    functions: Mapping[str, Callable] = field(default_factory=dict)
    on_step: OnStep | None = None

    @property
    def names(self) -> list[str]:
        """What settings call the objects."""
        return [*self.parts, *self.functions]


NOTHING = Given()


def kept(given: Given, settings: S, folder: RunFolder, processes: Processes) -> S:
    """The settings with the paths of what was given, which lies in the run's folder from now on.

    UserError where a resumed run is given other models or data than it began with.
    """
    if not given.parts:
        return settings
    processes.on_main(lambda: _write(given, folder))
    copied(folder.path / GIVEN, processes)
    places = {name: str(place_of(name, folder.path)) for name in given.parts}
    folder.settings.update(placed(folder.settings, places))
    return type(settings).model_validate(placed(settings.model_dump(), places))


def place_of(name: str, folder: Path) -> Path:
    """Where the run in `folder` keeps what its settings call `name`."""
    return folder / GIVEN / name.removeprefix(IN_MEMORY)


def placed(value: Any, places: Mapping[str, str]) -> Any:
    """Nested settings with paths in the place of names."""
    if isinstance(value, dict):
        return {key: placed(inner, places) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(placed(inner, places) for inner in value)
    return places.get(value, value) if isinstance(value, str) else value


def _write(given: Given, folder: RunFolder) -> None:
    """Write all parts; those of a resumed run must be what lies there."""
    target = folder.path / GIVEN
    fresh = target.with_name(f"{GIVEN}.new{TEMPORARY}")
    try:
        replace_folder(fresh, lambda path: _fill(path, given))
        if target.is_dir():
            new, old = (fingerprints.of({"given": _files(x)}) for x in (fresh, target))
            inputs = {"given": _files(target)}
            told = fingerprints.refuse_changed(folder.path, inputs, new, old, folder.anyway)
            folder.changed.extend(told)
            shutil.rmtree(target)
        fresh.rename(target)
    except UNWRITABLE as error:
        raise UserError(f"{target} cannot be written ({error}); make room there") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _fill(path: Path, given: Given) -> None:
    for name, write in given.parts.items():
        write(path / name.removeprefix(IN_MEMORY))


def _files(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their names in it."""
    return {str(x.relative_to(folder)): x for x in sorted(folder.rglob("*")) if x.is_file()}
