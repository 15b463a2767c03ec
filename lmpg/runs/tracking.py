"""Logging of a run: metrics.jsonl, samples.jsonl, one console line per step, trackers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmpg.runs.log_lines import FILES
from lmpg.runs.printable import printable
from lmpg.runs.progress_bar import progress
from lmpg.runs.trackers.mirrors import Mirrors, remember_steps


class Tracker:
    """Writes a run's metrics; only the main process's tracker does anything.

    Numbers go into the files as Python prints them, so that equal runs give equal bytes; NaN and
    inf, which JSON does not have, become null. problem: why a line could not be written, if so; no
    more are then.
    """

    problem: str | None = None
    _mirrors: Mirrors | None = None

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        *,
        main_process: bool = True,
        console_interval: float = 0.5,
    ) -> None:
        self.main_process = main_process
        self._console = progress(total_steps, console_interval)
        if not main_process:
            return
        self._run_dir, self._samples = run_dir, list[Mapping[str, Any]]()
        # without buffers: what a full disk refuses would be written again when they are closed
        self._files = {name: (run_dir / name).open("ab", buffering=0) for name in FILES}

    def start(self, settings: Mapping[str, Any]) -> None:
        """From now on log to the trackers that the run's settings name, too; once nothing is left
        to be refused."""
        if self.main_process and settings["run"]["trackers"]:
            self._mirrors = Mirrors(self._run_dir, settings, self.say)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and one on the console (at most two a second)."""
        if not self.main_process:
            return
        numbers = {name: as_json(value) for name, value in metrics.items()}
        self._append("metrics.jsonl", {"step": step, **numbers})
        self._console.show(step, numbers)
        if self._mirrors:
            self._mirrors.log(step, numbers, self._samples)
        self._samples = []

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prompts, completions and scores of a step, one line of samples.jsonl each."""
        if self.main_process:
            self._samples = [as_json(row) for row in rows]
            for row in self._samples:
                self._append("samples.jsonl", {"step": step, **row})

    def say(self, text: str) -> None:
        """Print a line, on the main process alone."""
        if self.main_process:
            print(printable(text), flush=True)

    def state(self) -> dict[str, int]:
        """Lengths of the files in bytes, for checkpoints; `cut_back` returns to them."""
        if not self.main_process:
            return {}
        sizes = {}
        for name, file in self._files.items():
            os.fsync(file.fileno())
            sizes[name.removesuffix(".jsonl")] = os.fstat(file.fileno()).st_size
        return sizes

    def cut_back(self, state: Mapping[str, int]) -> None:
        """Shorten the files to a checkpoint's lengths; {} empties them."""
        if not self.main_process:
            return
        remember_steps(self._run_dir)
        for name, file in self._files.items():
            length, path = int(state.get(name.removesuffix(".jsonl"), 0)), Path(file.name)
            present = path.read_bytes() if os.fstat(file.fileno()).st_size < length else None
            if present is not None:
                self.say(
                    f"warning: {path} had {length} bytes at the checkpoint and has "
                    f"{len(present)} now; the run goes on without the lines that are gone"
                )
                length = present.rfind(b"\n") + 1
            file.truncate(length)

    def close(self) -> None:
        """Close the files."""
        if self.main_process:
            self._console.close()
            for file in self._files.values():
                file.close()
            if self._mirrors:
                self._mirrors.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        text = json.dumps(row, allow_nan=False, ensure_ascii=False)
        left = memoryview(text.encode("utf-8", "replace") + b"\n")
        try:
            while left and self.problem is None:
                left = left[self._files[name].write(left) :]
        except OSError as error:
            self.problem = f"{self._files[name].name} cannot be written: {error.strerror}"


def as_json(value: Any) -> Any:
    """`value` for strict JSON: NaN and inf become None, one-element tensors and arrays numbers."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if hasattr(value, "item"):
        return as_json(value.item())
    raise TypeError(f"{value!r} is a {type(value).__name__}; expected a number or a text")
