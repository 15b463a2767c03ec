"""The source of a reward and of the local modules that it imports: read once, kept for good.

A worker that replaces another one gets what the first has read, so that a file that is edited
while a run goes on changes nothing in it.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

INSTALLED = ("site-packages", "dist-packages")
STANDARD_LIBRARY = os.path.dirname(os.path.abspath(os.__file__))
LMPG = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
Sources = dict[str, list[str]]
"""Path → [the module's name, its source with a character per byte]."""


def keep(kept: Sources) -> Sources:
    """Makes imports take local modules from `kept`; returns a dict that the others go into.

    What is read from a file goes into both, once, when it is first imported.
    """
    read: Sources = {}
    usual = SourceFileLoader.get_code

    def code(self: SourceFileLoader, name: str) -> CodeType | None:
        path = os.path.abspath(self.path)
        if not is_local(path):
            return usual(self, name)
        if path not in kept:
            kept[path] = read[path] = [name, self.get_data(self.path).decode("latin-1")]
        return self.source_to_code(kept[path][1].encode("latin-1"), self.path)

    def find_spec(name: str, *_: Any) -> ModuleSpec | None:
        for path, (module, _text) in kept.items():
            if module == name:
                packed = os.path.basename(path) == "__init__.py"
                places = [os.path.dirname(path)] if packed else None
                return spec_from_file_location(name, path, submodule_search_locations=places)
        return None

    SourceFileLoader.get_code = code  # type: ignore[method-assign, assignment]
    sys.meta_path.append(SimpleNamespace(find_spec=find_spec))  # last: for files that have gone
    return read


def is_local(path: str) -> bool:
    """Whether a file is the user's: neither Python's, nor lmpg's, nor of an installed package."""
    inside = (STANDARD_LIBRARY + os.sep, LMPG + os.sep)
    return not path.startswith(inside) and not any(part in INSTALLED for part in path.split(os.sep))


def save(sources: Sources, folder: Path) -> None:
    """Writes sources as MODULE.py, packages as folders; another text of a module gets a number."""
    for place, (module, text) in sources.items():
        parts = [*module.split("."), *(["__init__"] if Path(place).name == "__init__.py" else [])]
        _save(folder.joinpath(*parts[:-1]), parts[-1], text.encode("latin-1"))


def _save(folder: Path, name: str, source: bytes) -> None:
    path, number = folder / f"{name}.py", 2
    while path.exists():
        if path.read_bytes() == source:
            return
        path, number = folder / f"{name}_{number}.py", number + 1
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{name}.py.partial"  # a run that is killed now writes it again
    whole.write_bytes(source)
    whole.replace(path)
