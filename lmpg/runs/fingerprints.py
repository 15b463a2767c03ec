"""Fingerprints of a run's inputs: whether it is resumed with the same data, rewards and models.

A fingerprint is the SHA-256 of a file's whole content, wherever the file lies. Pieces of large
files are read by several threads: some seconds for ten gigabytes, less than loading them takes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from lmpg.runs.files import write_text
from lmpg.settings.section import UserError

log = logging.getLogger(__name__)
INPUTS = "inputs.json"
Part = Path | str | Callable[[], Iterable[str]]
Inputs = Mapping[str, Mapping[str, Part]]
"""setting → name of a part of it → its file, or a text that says what it is; a long text as a
function that gives it in pieces."""
Prints = dict[str, dict[str, str]]
P = TypeVar("P", bound=Part)
PIECE = 1 << 26
THREADS = 8


def of(inputs: Inputs) -> Prints:
    """The fingerprints of all inputs."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return {
            key: {name: _digest(part, pool) for name, part in parts.items()}
            for key, parts in inputs.items()
        }


def read(run_dir: Path) -> Prints:
    """The fingerprints in a run's folder; {} with a warning where there are none."""
    path = run_dir / INPUTS
    try:
        found = json.loads(path.read_bytes())
        prints = found["inputs"]
        return {key: {name: str(x) for name, x in parts.items()} for key, parts in prints.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        log.warning(
            "%s is missing or holds no fingerprints of inputs: nobody can tell whether these are "
            "those that the run began with",
            path,
        )
        return {}


def read_commits(run_dir: Path) -> Prints:
    """The commits on the Hub that a run's inputs came from: setting → name → commit."""
    try:
        found = json.loads((run_dir / INPUTS).read_bytes())["hub"]
        return {key: dict(commits) for key, commits in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # older versions wrote none


def write(run_dir: Path, prints: Prints, commits: Prints | None = None) -> None:
    """Write the fingerprints into a run's folder, and the commits of what came from the Hub."""
    found = {"format": 1, "inputs": prints, "hub": commits or {}}
    write_text(run_dir / INPUTS, json.dumps(found, indent=2) + "\n")


def refuse_changed(
    run_dir: Path,
    inputs: Inputs,
    prints: Prints,
    began_with: Prints,
    anyway: bool,
    commits: Prints | None = None,
) -> list[str]:
    """UserError that names the inputs which are not what the run in `run_dir` began with; with
    `anyway` the same as lines for the log. commits: on the Hub, of the inputs as they are now."""
    lines = [
        f"{key}: {_place(inputs[key].get(name), name)} {change} the run in {run_dir} began"
        for key in sorted(prints.keys() & began_with.keys())
        for name, change in _changes(began_with[key], prints[key])
    ]
    if lines and not anyway:
        lines += _moved_on(read_commits(run_dir), commits or {})
        lines.append(
            "a resumed run goes on with the inputs that it began with; restore them, add "
            "--run.resume-anyway to go on with these, or choose another --run.output-dir"
        )
        raise UserError("\n".join(lines))
    return [f"warning: {line} (run.resume_anyway)" for line in lines]


def _moved_on(before: Prints, now: Prints) -> Iterator[str]:
    """A line for each model or data set that has another commit on the Hub by now."""
    for key in ("model.path", "data.path"):
        for name, commit in before.get(key, {}).items():
            if now.get(key, {}).get(name, commit) != commit:
                section = key.partition(".")[0]
                yield f"{name} has moved on; add --{section}.revision {commit} for what it was"


def _changes(old: dict[str, str], new: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield name, "is gone since"
        elif name not in old:
            yield name, "was not there when"
        elif old[name] != new[name]:
            yield name, "has changed since"


def _place(part: Part | None, name: str) -> str:
    return str(part) if isinstance(part, Path) else name


def _digest(part: Part, pool: ThreadPoolExecutor) -> str:
    if not isinstance(part, Path):
        digest = hashlib.sha256()
        for text in [part] if isinstance(part, str) else part():
            digest.update(text.encode("utf-8", "replace"))
        return digest.hexdigest()
    try:
        size = part.stat().st_size
        pieces = list(pool.map(partial(_piece, part), range(0, size, PIECE)))
    except OSError as error:
        raise UserError(f"{part} cannot be read ({error.strerror}); mend it") from error
    return pieces[0].hex() if len(pieces) == 1 else hashlib.sha256(b"".join(pieces)).hexdigest()


def _piece(path: Path, start: int) -> bytes:
    """SHA-256 of the bytes from `start` on."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        left = PIECE
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


def numbered(parts: Iterable[Mapping[str, P]]) -> dict[str, P]:
    """The parts of a setting that is a list, each with its place in the list before its names."""
    return {f"{i}: {name}": file for i, part in enumerate(parts) for name, file in part.items()}


def source_files(source: str) -> dict[str, Path]:
    """A Python file, or the file of a dotted module, and all local modules that they import, by
    their names; nothing is run. Libraries (what is installed) are left out."""
    cwd = Path.cwd()
    roots = [cwd, *(Path(entry) for entry in sys.path if entry and not _is_installed(Path(entry)))]
    if source.endswith(".py"):
        first = Path(source).expanduser().absolute()
        found = {} if _is_installed(first) else {first.name: first}
        roots = [first.parent, *roots]
    else:
        found = dict(_modules(source, roots))
    waiting = list(found.values())
    while waiting:
        path = waiting.pop()
        for module in _imports(path, roots):
            for name, file in _modules(module, roots):
                if name not in found and file not in found.values():
                    found[name] = file
                    waiting.append(file)
    return found


def _modules(dotted: str, roots: list[Path]) -> list[tuple[str, Path]]:
    """The files of a local module and of the packages around it, with their names; [] for none."""
    parts = dotted.split(".")
    for root in roots:
        found = []
        for count in range(1, len(parts) + 1):
            place = root.joinpath(*parts[:count])
            files = (place.with_name(f"{place.name}.py"), place / "__init__.py")
            name = ".".join(parts[:count])
            found += [(name, x) for x in files if x.is_file() and not _is_installed(x)]
        if found:
            return found
    return []


def _imports(path: Path, roots: list[Path]) -> Iterator[str]:
    """Dotted names that a file imports anywhere; those that are no modules do no harm."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.level, path, roots) + (node.module or "")
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


def _absolute(level: int, path: Path, roots: list[Path]) -> str:
    """The package that a relative import starts from, with a dot behind; "" for others."""
    if not level:
        return ""
    folder = path.parents[level - 1]
    root = next((x for x in roots if folder.is_relative_to(x)), None)
    return ".".join([*folder.relative_to(root).parts, ""]) if root else ""


def _is_installed(path: Path) -> bool:
    """Whether it belongs to Python, to an installed library, or to lmpg."""
    places = {
        sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    places.add(str(Path(__file__).parents[1]))
    path = path.absolute()
    return any(path.is_relative_to(x) for x in places) or "site-packages" in path.parts
