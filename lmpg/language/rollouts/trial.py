"""A run that is tried and leaves nothing: its passing folder, and what a step of it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmpg.runs.folder import RunFolder
from lmpg.runtime.machine import peak_memory_gb
from lmpg.runtime.processes import Processes
from lmpg.training.run import begin


@contextmanager
def passing_run(settings: Any, name: str, processes: Processes) -> Iterator[RunFolder]:
    """The folder of a run that leaves none."""
    with TemporaryDirectory(prefix="lmpg-check-") as place:
        own = {"resume": False, "resume_anyway": False, "push_to_hub": None, "trackers": ()}
        run = settings.run.model_copy(update={**own, "output_dir": str(Path(place) / "run")})
        folder = begin(settings.model_copy(update={"run": run}), name, processes)
        try:
            yield folder
        finally:
            folder.close()


def step_line(metrics: dict[str, float], total_steps: int, processes: Processes) -> str:
    """Seconds of a step and of the run, and memory."""
    seconds = {k.removeprefix("time/"): v for k, v in metrics.items() if k.startswith("time/")}
    whole = sum(seconds.values())
    parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return (
        f"a step takes {whole:.1f} s ({parts}), the run of {total_steps} about "
        f"{whole * total_steps / 60:.0f} min; memory "
        f"{peak_memory_gb(processes.device):.1f} GB at its peak"
    )
