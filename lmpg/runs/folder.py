"""A run's folder: taking hold of it, starting or resuming there, and the files written to it."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from lmpg.algorithms import algorithm_name
from lmpg.runs import fingerprints
from lmpg.runs.files import TEMPORARY, sweep, write_text
from lmpg.runs.fingerprints import INPUTS, Inputs, Prints
from lmpg.runs.lock import LOCK, OWNER, Held, hold, let_go, opened
from lmpg.runs.log_lines import FILES
from lmpg.runs.resumable import changes, share_choices
from lmpg.runs.tracking import as_json
from lmpg.settings.on_the_hub import commits_of
from lmpg.settings.raw import as_in_yaml, defaults_of
from lmpg.settings.section import UserError
from lmpg.settings.yaml_files import escaped, unescaped

__all__ = ["opened"]
log = logging.getLogger(__name__)
FINISHED = "finished"
CONFIG, SUMMARY, REPORT = "config.yaml", "summary.json", "report.html"
NESTED = ("before", "after", "best", "seconds", "versions")
GIVEN = "given"  # what Python gave the run as objects
FOLDERS = ("checkpoints", "reward_sources", GIVEN)
BEFORE_THE_FIRST_STEP = {CONFIG, INPUTS, LOCK, OWNER, *FOLDERS, *FILES}
WRITTEN_WHOLE = (CONFIG, INPUTS, SUMMARY, REPORT, "final", "best")


@dataclass(frozen=True)
class RunFolder:
    """The folder that a run writes to, and whether the run starts, resumes or has finished.

    settings: all that config.yaml is to hold. anyway: whether changed inputs are taken on resume.
    changed: lines for the log. began_with: a resumed run's fingerprints. made: folders made for it,
    outermost first.
    """

    path: Path
    status: Literal["fresh", "resuming", "finished"]
    settings: dict[str, Any] = field(default_factory=dict)
    anyway: bool = False
    changed: list[str] = field(default_factory=list)
    began_with: Prints = field(default_factory=dict)
    made: list[Path] = field(default_factory=list)

    @property
    def num_threads(self) -> int:
        """CPU threads that the user has asked for, or that a resumed run had; 0: neither."""
        return self.settings["run"]["torch_threads"]

    def fix_threads(self, count: int) -> None:
        """Keep their number with the settings, as results depend on it; before `start`."""
        self.settings["run"]["torch_threads"] = count

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def start(self, inputs: Inputs) -> list[str]:
        """Write the settings and fingerprints of the inputs, once all is prepared; returns lines
        for the log about what differs from before. UserError where a resumed run would go on with
        other inputs."""
        prints, commits = fingerprints.of(inputs), commits_of(self.settings)
        told = list(self.changed)
        if self.status == "resuming":
            before = self.began_with
            rest = before, self.anyway, commits
            told += fingerprints.refuse_changed(self.path, inputs, prints, *rest)
            prints = before | prints
            commits = fingerprints.read_commits(self.path) | commits
            (self.path / SUMMARY).unlink(missing_ok=True)  # it would call a longer run finished
        for name in FILES:  # empty ones beside config.yaml tell that no step has been done
            (self.path / name).touch()
        settings = yaml.safe_dump(escaped(self.settings), sort_keys=False, allow_unicode=True)
        write_text(self.path / CONFIG, settings)
        fingerprints.write(self.path, prints, commits)
        return told

    def abandon(self) -> None:
        """Remove the folder of a run that ends before its first step, so that the same command
        can be given again; one that has begun stays."""
        if self.status == "fresh" and self.path.is_dir() and not _has_begun(self.path):
            _clear(self.path)
            (self.path / LOCK).unlink(missing_ok=True)
            self.close()
            for path in reversed(self.made):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()

    def close(self) -> None:
        """Release the lock, so that another process can use the folder."""
        let_go(self.path)


def open_run(settings: Any, name: str) -> RunFolder:
    """Lock `settings.run.output_dir`, or a fresh runs/NAME-TIME; called on the main process.

    Refused: a folder that cannot be written, that another live run holds, that holds another run
    (without resume), a run with other settings (with resume), or files that are no run. Nothing
    but locks is written until `RunFolder.start`.
    """
    run = settings.run
    path, made = (Path(run.output_dir), []) if run.output_dir else _fresh(name)
    resume = run.resume or run.resume_anyway
    made += _make(path)
    _lock(path)
    try:
        new = resolved(settings)
        if (path / CONFIG).exists() and _has_begun(path):
            return _go_on(path, new, resume, run.resume_anyway, type(settings))
        _clear(path)
    except UserError:
        let_go(path)
        raise
    told = [f"{path} holds no run to go on with: a new one begins"] if resume else []
    return RunFolder(path, "fresh", new, changed=told, made=made)


def _go_on(
    path: Path, new: dict[str, Any], resume: bool, anyway: bool, kind: type[BaseModel]
) -> RunFolder:
    """The folder of a run that was begun earlier: finished, or to be resumed with `resume`."""
    if not resume:
        raise UserError(
            f"run.output_dir = {path} holds another run; add --run.resume to go on with it, "
            "or choose another --run.output-dir"
        )
    old = read_config(path / CONFIG)
    share_choices(old, new)
    began_with = fingerprints.read(path)
    changed = changes(old, new, path, began_with, as_in_yaml(defaults_of(kind)))
    if _is_finished(path, old, new):
        return RunFolder(path, "finished", new)
    sweep(path, WRITTEN_WHOLE)
    return RunFolder(path, "resuming", new, anyway, changed, began_with)


def _has_begun(path: Path) -> bool:
    """Whether a run has left there what a step leaves: anything but settings and empty files."""
    names = {x.name for x in path.iterdir() if x.suffix != TEMPORARY}
    users_own = CONFIG in names and not names & set(FILES)  # settings that no run has written
    if users_own or not names <= BEFORE_THE_FIRST_STEP:
        return True
    saved = (path / "checkpoints").glob("[!.]*")
    return any(saved) or any((path / x).stat().st_size for x in names & set(FILES))


def _clear(path: Path) -> None:
    """Remove what was written before a first step."""
    sweep(path, WRITTEN_WHOLE)
    for name in FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)
    for name in (CONFIG, INPUTS, *FILES):
        (path / name).unlink(missing_ok=True)


def resolved(settings: BaseModel) -> dict[str, Any]:
    """All settings but output_dir and resume, as config.yaml holds them to reproduce the run."""
    values = settings.model_dump(mode="json")
    for key in ("output_dir", "resume", "resume_anyway"):
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
    write_text(run_dir / SUMMARY, text + "\n")


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The content of summary.json; {} where there is none, or where it holds something else."""
    path = run_dir / SUMMARY
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return {k: v for k, v in found.items() if k not in NESTED or isinstance(v, dict)}
    log.warning("%s does not hold a summary; it counts as missing", path)
    return {}


def fresh_name(name: str) -> Path:
    """runs/NAME-TIME, which does not exist yet."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = Path("runs") / stem, 1
    while path.exists():
        n += 1
        path = Path("runs") / f"{stem}-{n}"
    return path


def _fresh(name: str) -> tuple[Path, list[Path]]:
    """A folder runs/NAME-TIME that no run started in the same second has, and the folders that
    were made for it, outermost first."""
    while True:
        path = fresh_name(name)
        made = [x for x in (*reversed(path.parents), path) if not x.exists()]
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:  # said by `_make`
            return path, []
        return path, made


def _make(path: Path) -> list[Path]:
    """Create the folder and a file in it, or say why that is impossible; leave others' alone.
    Returns the folders that were not there, outermost first."""
    try:
        made = [x for x in (*reversed(path.parents), path) if not x.exists()]
        path.mkdir(parents=True, exist_ok=True)
        names = [x.name for x in path.iterdir() if not _is_nothing(x)]
        if names and CONFIG not in names:
            raise UserError(
                f"run.output_dir = {path} holds files that are no run of lmpg ({min(names)}); "
                "choose a folder that is empty or does not exist"
            )
        probe = path / f"probe{TEMPORARY}"
        probe.write_text("")
        probe.unlink()
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"run.output_dir = {path} cannot be written ({reason}); "
            "choose a folder that you may write to"
        ) from error
    return made


def _is_nothing(path: Path) -> bool:
    """A file that a run leaves before its settings."""
    empty = path.name in FILES and path.is_file() and not path.stat().st_size
    return path.name in (LOCK, OWNER) or path.suffix == TEMPORARY or empty


def _lock(path: Path) -> None:
    """Lock the folder as long as this process lives."""
    try:
        hold(path)
    except Held as error:
        by = str(error) or "by a run that is still going"
        raise UserError(
            f"run.output_dir = {path} is in use {by}; "
            "wait for it, or choose another --run.output-dir"
        ) from error
    except OSError as error:
        raise UserError(
            f"run.output_dir = {path} cannot be locked ({error.strerror}); choose another "
            "--run.output-dir"
        ) from error


def _is_finished(path: Path, old: dict, new: dict) -> bool:
    """Whether the run did all its steps, no more are asked of it now, and its model is there or
    cannot be made again."""
    made = (path / "final").is_dir() or not any((path / "checkpoints").glob("step_*"))
    if not made or read_summary(path).get("exit_reason") != FINISHED:
        return False
    keys = ("total_steps", "total_timesteps")
    return all(new["run"][key] <= old["run"].get(key, 0) for key in keys if key in new["run"])


def read_config(path: Path) -> dict:
    """The settings in a run's config.yaml; UserError where it holds none."""
    try:
        values = unescaped(yaml.safe_load(path.read_text(encoding="utf-8")))
        if not isinstance(values, dict) or not isinstance(values.get("run"), dict):
            raise yaml.YAMLError("it has no section `run`")
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} does not hold a run's settings ({reason}); restore it, or choose another "
            "--run.output-dir"
        ) from error
    return values
