"""A run's folder: taking hold of it, starting or resuming there, and the files written to it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TextIO

import yaml
from pydantic import BaseModel

from lmpg import __version__
from lmpg.algorithms import algorithm_name
from lmpg.runs.checkpoint import fsync
from lmpg.runs.tracking import as_json
from lmpg.settings.section import UserError

FINISHED = "finished"
MAY_DIFFER = {  # the number of steps, saving and trackers; anything else would be another run
    "run.total_steps",
    "run.total_timesteps",
    "run.save_every",
    "run.keep_checkpoints",
    "run.trackers",
}
LOCK = ".lock"
_locks: dict[Path, TextIO] = {}


@dataclass(frozen=True)
class RunFolder:
    """The folder that a run writes to, and whether the run starts, resumes or has finished.

    settings: all that config.yaml is to hold.
    """

    path: Path
    status: Literal["fresh", "resuming", "finished"]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def num_threads(self) -> int:
        """CPU threads that the user has asked for, or that a resumed run had; 0: neither."""
        return self.settings["run"]["torch_threads"]

    def fix_threads(self, count: int) -> None:
        """Keep their number with the settings, as results depend on it."""
        self.settings["run"]["torch_threads"] = count
        _write_text(self.path / "config.yaml", _as_yaml(self.settings))

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def abandon(self) -> None:
        """Remove a fresh folder after bad input was refused, so that the same command can be given
        again."""
        if self.status != "fresh" or self.checkpoints.exists():
            return
        for name in ("config.yaml", "metrics.jsonl", "samples.jsonl", LOCK):
            (self.path / name).unlink(missing_ok=True)
        self.close()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def close(self) -> None:
        """Release the lock, so that another process can use the folder."""
        _unlock(self.path)


def opened() -> list[Path]:
    """Folders that this process has locked, in the order of locking."""
    return list(_locks)


def open_run(settings: Any, name: str) -> RunFolder:
    """Lock `settings.run.output_dir`, or a fresh runs/NAME-TIME; called on the main process.

    Refused: a folder that cannot be written, that another live run holds, that holds another run
    (without resume), a run with other settings (with resume), or files that are no run.
    """
    run = settings.run
    path = Path(run.output_dir) if run.output_dir else fresh_name(name)
    _make(path)
    _lock(path)
    try:
        if (path / "config.yaml").exists():
            return _go_on(path, resolved(settings), run.resume)
    except UserError:
        _unlock(path)
        raise
    new = resolved(settings)
    _write_text(path / "config.yaml", _as_yaml(new))
    return RunFolder(path, "fresh", new)


def _go_on(path: Path, new: dict[str, Any], resume: bool) -> RunFolder:
    """The folder of a run that was begun earlier: finished, or to be resumed with `resume`."""
    if not resume:
        raise UserError(
            f"run.output_dir = {path} holds another run; add --run.resume to go on with it, "
            "or choose another --run.output-dir"
        )
    config, summary = path / "config.yaml", path / "summary.json"
    old = _read_config(config)
    share_threads(old, new)
    _refuse_other_settings(old, new, path)
    if _is_finished(summary, old, new):
        return RunFolder(path, "finished", new)
    summary.unlink(missing_ok=True)  # first: it would call the longer run finished
    _write_text(config, _as_yaml(new))
    return RunFolder(path, "resuming", new)


def share_threads(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Give the number of CPU threads to settings that leave it open, from those that name it."""
    known = new["run"].get("torch_threads") or old["run"].get("torch_threads") or 0
    for values in (old, new):
        if not values["run"].get("torch_threads"):
            values["run"]["torch_threads"] = known


def resolved(settings: BaseModel) -> dict[str, Any]:
    """All settings but output_dir and resume, as config.yaml holds them to reproduce the run."""
    values = settings.model_dump(mode="json")
    for key in ("output_dir", "resume"):
        values["run"].pop(key)
    if "algorithm" in values:
        name = algorithm_name(type(settings.algorithm))  # type: ignore[attr-defined]
        values["algorithm"] = {"name": name, **values["algorithm"]}
    return values


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write summary.json in one piece; NaN and inf become null.

    `exit_reason` = "finished" is what lets a later resume say that there is nothing left to do.
    """
    text = json.dumps(as_json(summary), indent=2, ensure_ascii=False, allow_nan=False)
    _write_text(run_dir / "summary.json", text + "\n")


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The content of summary.json; {} where there is none."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose code computes a run's numbers."""
    found = {"python": platform.python_version(), "lmpg": __version__}
    for package in ("torch", "transformers", "accelerate", "peft", "gymnasium", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def fresh_name(name: str) -> Path:
    """runs/NAME-TIME, which does not exist yet."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = Path("runs") / stem, 1
    while path.exists():
        n += 1
        path = Path("runs") / f"{stem}-{n}"
    return path


def _make(path: Path) -> None:
    """Create the folder and a file in it, or say why that is impossible; leave others' alone."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = [p.name for p in path.iterdir() if p.name != LOCK and p.suffix != ".tmp"]
        if names and "config.yaml" not in names:
            raise UserError(
                f"run.output_dir = {path} holds files that are no run of lmpg ({min(names)}); "
                "choose a folder that is empty or does not exist"
            )
        probe = path / "probe.tmp"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"run.output_dir = {path} cannot be written ({error.strerror}); "
            "choose a folder that you may write to"
        ) from error


def _lock(path: Path) -> None:
    """Lock the folder as long as this process lives; the system unlocks it even after kill -9."""
    key = path.resolve()
    if key in _locks:
        return
    file = (path / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(
            f"run.output_dir = {path} is in use by a run that is still going; "
            "wait for it, or choose another --run.output-dir"
        ) from error
    _locks[key] = file


def _unlock(path: Path) -> None:
    lock = _locks.pop(path.resolve(), None)
    if lock:
        lock.close()


def _refuse_other_settings(old: dict, new: dict, path: Path) -> None:
    before, now = _flat(old), _flat(new)
    lines = [
        f"{key} = {now.get(key)!r}, but the run in {path} has {before.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in MAY_DIFFER
    ]
    if lines:
        lines.append(
            "with --run.resume only the number of steps, saving and trackers may differ; "
            "give the same settings as before, or choose another --run.output-dir"
        )
        raise UserError("\n".join(lines))


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _is_finished(summary: Path, old: dict, new: dict) -> bool:
    """Whether the run did all its steps, and no more are asked of it now."""
    if read_summary(summary.parent).get("exit_reason") != FINISHED:
        return False
    keys = ("total_steps", "total_timesteps")
    return all(new["run"][key] <= old["run"][key] for key in keys if key in new["run"])


def _read_config(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not isinstance(values.get("run"), dict):
            raise yaml.YAMLError("it has no section `run`")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} does not hold a run's settings ({reason}); restore it, or choose another "
            "--run.output-dir"
        ) from error
    return values


def _as_yaml(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _write_text(path: Path, text: str) -> None:
    """Replace a file's content in one instant."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync(path.parent)
