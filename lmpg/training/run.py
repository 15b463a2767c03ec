"""A run from its folder to its results: resume, train, evaluate, save, summarise, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from lmpg.runs.console import lasting_console
from lmpg.runs.files import replace_folder
from lmpg.runs.fingerprints import Inputs
from lmpg.runs.folder import FINISHED, REPORT, SUMMARY, RunFolder, open_run, write_summary
from lmpg.runs.hub.card import write_cards
from lmpg.runs.hub.upload import require_repository, upload
from lmpg.runs.log_lines import METRICS, log_rows
from lmpg.runs.progress_line import CALLED
from lmpg.runs.report.write import write_report
from lmpg.runs.settings import MOST_THREADS
from lmpg.runs.watcher import Watcher
from lmpg.runtime.machine import (
    keep_freed_memory,
    new_objects_only,
    num_cores,
    threads_by_environment,
    versions,
)
from lmpg.runtime.processes import Processes
from lmpg.runtime.watch import TIMEOUT
from lmpg.settings.section import RunStopped
from lmpg.training.disks.resuming import resume
from lmpg.training.disks.same_files import (
    refuse_other_files,
    refuse_run_elsewhere,
    require_one_disk,
)
from lmpg.training.loop import Loop
from lmpg.training.stop_request import interruption

log = logging.getLogger(__name__)


def begin(settings: Any, name: str, processes: Processes) -> RunFolder:
    """Take hold of the run's folder, the same on every rank; says so where it has finished, and
    uploads its model where that is asked for now."""
    keep_freed_memory()
    repository = getattr(settings.run, "push_to_hub", None)
    if repository:
        processes.on_main(lambda: require_repository(repository))
    folder = processes.on_main(lambda: open_run(settings, name))
    refuse_run_elsewhere(folder, processes)
    go_on = f"the same command and --run.output-dir {folder.path} --run.resume go on"
    processes.watch(getattr(settings.run, "rank_timeout", TIMEOUT), go_on)
    if folder.status == "finished" and processes.is_main:
        if _is_stale(folder.path / REPORT):
            write_report(folder.path)
        print(f"{folder.path} has finished already; nothing to do", flush=True)
    if folder.status == "finished" and repository:
        processes.on_main(lambda: print(_uploaded(folder.path, repository, name), flush=True))
    if folder.num_threads:
        asked = settings.run.torch_threads == folder.num_threads
        why = "run.torch_threads" if asked else "as the run began"
        processes.fix_threads(folder.num_threads, why)
    elif count := processes.on_main(lambda: threads_by_environment(MOST_THREADS)):
        processes.fix_threads(count, "OMP_NUM_THREADS")
    return folder


def _is_stale(report: Path) -> bool:
    """Whether a finished run was killed before its last report, which follows its summary."""
    summary = report.with_name(SUMMARY)
    return not report.exists() or report.stat().st_mtime_ns < summary.stat().st_mtime_ns


@contextmanager
def nothing_left_before_the_first_step(folder: RunFolder, processes: Processes) -> Iterator[None]:
    """Removes the run's folder if whatever happens in the block ends the run before its first
    step: bad input, a mistake, Ctrl-C."""
    try:
        yield
    except BaseException:
        if processes.is_main:
            folder.abandon()
        raise


def run(
    loop: Loop,
    folder: RunFolder,
    name: str,
    facts: dict[str, Any],
    inputs: Inputs | None = None,
    on_start: Callable[[], None] = lambda: None,
    task: str | None = None,
) -> None:
    """Trains until the end or an interruption, and leaves everything in the run's folder.

    facts: go into the summary as they are. inputs: what a resumed run must find unchanged.
    on_start: called by the main process once nothing is left to be refused. task: of the model as
    the Hub calls it, for its card; None where it gets none.
    After an interruption, which is raised, the same command with --run.resume goes on.
    """
    started = time.perf_counter()
    with lasting_console(), closing(loop.tracker):
        _start(loop, folder, inputs or {}, on_start)
        _watch(loop, lambda found: _summary(loop, found, started, name, facts))
        try:
            with new_objects_only():
                found: dict[str, Any] = {"exit_reason": loop.run()}
            if found["exit_reason"] == FINISHED:
                found["after"] = loop.evaluate()
                loop.prune()
                made = folder.settings, _summary(loop, found, started, name, facts)
                loop.write(lambda: _write_final(loop, task, *made))
        except RunStopped as stop:
            if loop.progress.before:  # else nothing has been done, and nothing is to be left
                found = {"exit_reason": f"stopped: {stop}"}
                with suppress(RunStopped):  # what has stopped it may stop this, too
                    _conclude(loop, found, started, name, facts)
            raise
        _conclude(loop, found, started, name, facts)
        if found["exit_reason"] == FINISHED:
            _upload(loop, name)
    if loop.stopped_by:
        raise interruption(loop.stopped_by)


def _start(loop: Loop, folder: RunFolder, inputs: Inputs, on_start: Callable[[], None]) -> None:
    """Writes what the run begins with, and goes on where a resumed one has been."""
    if loop.processes.is_main:
        folder.fix_threads(loop.processes.num_threads)
    require_one_disk(folder, loop.processes)
    refuse_other_files(inputs, loop.processes)
    lines = loop.processes.on_main(lambda: folder.start(inputs))
    if loop.processes.is_main:
        on_start()
    for line in [*lines, *thread_lines(loop.processes)]:
        loop.tracker.say(line)
    resume(loop, folder)
    for line in loop.refuse_full_disk():
        loop.tracker.say(line)
    loop.tracker.start(folder.settings)


def _watch(loop: Loop, summary: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """While the run goes on, what goes wrong is said, and report.html kept up to date."""
    algorithm = getattr(loop, "algorithm", None)
    update = getattr(getattr(loop, "updater", None), "settings", None)
    asked = {
        "kl_target": getattr(algorithm, "kl_target", None),
        "target_kl": getattr(update, "target_kl", None),
    }
    every = loop.settings.report_every if loop.processes.is_main else 0
    before = log_rows(loop.folder / METRICS) if loop.processes.is_main else ()
    watcher = Watcher(every, asked, loop.progress.warnings, before)

    def so_far() -> dict[str, Any]:
        return summary({"total_steps": loop.total_steps, "written": time.strftime("%H:%M:%S")})

    def after_step(step: int, metrics: dict[str, float]) -> dict[str, float]:
        for text in watcher.alarms(step, metrics):
            loop.tracker.say(f"warning: {text} (said once)")
        seconds = watcher.write(step, loop.folder, so_far)
        return {"time/report": seconds} if seconds else {}

    loop.after_step = after_step


def thread_lines(processes: Processes) -> list[str]:
    """How many CPU threads each process has, why, and what speaks against it."""
    count, why = processes.num_threads, processes.why_so_many
    noun = "threads" if count > 1 else "thread"
    lines = [f"{count} CPU {noun} per process: {why} (--run.torch-threads)"]
    given = threads_by_environment(MOST_THREADS)
    if why == "as the run began" and given not in (0, count):
        lines[0] += f"; OMP_NUM_THREADS = {given} would change its results and is passed over"
    if count > num_cores():
        lines.append(
            f"warning: {count} CPU threads on the {num_cores()} cores that this process may use: "
            "slow, but with other threads the results would be others"
        )
    return lines


def _conclude(
    loop: Loop, found: dict[str, Any], started: float, name: str, facts: dict[str, Any]
) -> None:
    """summary.json, report.html and the last lines of the log; by the main process."""
    summary = _summary(loop, found, started, name, facts)
    loop.write(lambda: write_summary(loop.folder, summary))
    loop.write(lambda: write_report(loop.folder))
    loop.tracker.say(_closing_lines(summary, loop.folder))


def _summary(
    loop: Loop, found: dict[str, Any], started: float, name: str, facts: dict[str, Any]
) -> dict[str, Any]:
    progress, steps = loop.progress, loop.source.step_name
    busy = sum(progress.seconds.values())
    return {
        "name": name,
        **found,
        "before": progress.before,
        "best": progress.best,
        "steps": progress.iteration,
        "num_processes": loop.processes.count,
        "num_threads": loop.processes.num_threads,
        "device": str(loop.processes.device),
        "seconds": {**progress.seconds, "this_process": time.perf_counter() - started},
        f"num_{steps}": progress.num_tokens_or_steps,
        f"{steps}_per_second": progress.num_tokens_or_steps / busy if busy else None,
        "versions": versions(),
        **({"warnings": list(progress.warnings.values())} if progress.warnings else {}),
        **facts,
    }


def _write_final(
    loop: Loop, task: str | None, settings: dict[str, Any], summary: dict[str, Any]
) -> None:
    """final/: the model, and where it has a task a card beside it."""

    def fill(folder: Path) -> None:
        loop.save_policy(folder)
        if task is not None:
            write_cards(folder, task, settings, summary)

    replace_folder(loop.folder / "final", fill)


def _upload(loop: Loop, name: str) -> None:
    """Uploads final/ where the settings ask for it, and says where it is."""
    if repository := getattr(loop.settings, "push_to_hub", None):
        said = loop.processes.on_main(lambda: _uploaded(loop.folder, repository, name))
        loop.tracker.say(said)


def _uploaded(folder: Path, repository: str, name: str) -> str:
    """Uploads final/; returns a line that says where it is."""
    return f"final/ is at {upload(folder / 'final', repository, f'{name}, trained by lmpg')}"


def _closing_lines(summary: dict[str, Any], folder: Path) -> str:
    before, after = summary["before"], summary.get("after", {})
    lines = [
        f"{CALLED.get(name, name):>18}  {_shown(before.get(name))} → {_shown(value)}"
        for name, value in after.items()
    ]
    header = f"{'':>18}  {'before':>9}   {'after':>9}"
    reason = summary["exit_reason"].partition(":")[0]  # why it stopped is told by the error
    where = f"{reason} after {summary['steps']} steps: {folder}/report.html"
    return "\n".join([header, *lines, where] if after else [where])


def _shown(value: float | None) -> str:
    """A figure in nine places; never −0.000."""
    return f"{'':>9}" if value is None else f"{round(value, 3) + 0.0:9.3f}"
