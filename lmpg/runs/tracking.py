"""Logging of a run: metrics.jsonl, samples.jsonl, one console line per step, tensorboard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmpg.runs.printable import printable
from lmpg.runs.progress_bar import progress
from lmpg.settings.section import UserError

FILES = ("metrics.jsonl", "samples.jsonl")


class Tracker:
    """Writes a run's metrics; only the main process's tracker does anything.

    Numbers go into the files as Python prints them, so that equal runs give equal bytes; NaN and
    inf, which JSON does not have, become null. problem: why a line could not be written, if so; no
    more are then.
    """

    problem: str | None = None

    def __init__(
        self,
        run_dir: Path,
        trackers: Sequence[str],
        total_steps: int,
        *,
        main_process: bool = True,
        console_interval: float = 0.5,
    ) -> None:
        self.main_process = main_process
        self._console = progress(total_steps, console_interval)
        if not main_process:
            return
        self._board = _Tensorboard(run_dir) if "tensorboard" in trackers else None
        # without buffers: what a full disk refuses would be written again when they are closed
        self._files = {name: (run_dir / name).open("ab", buffering=0) for name in FILES}

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and one on the console (at most two a second)."""
        if not self.main_process:
            return
        numbers = {name: as_json(value) for name, value in metrics.items()}
        self._append("metrics.jsonl", {"step": step, **numbers})
        self._console.show(step, numbers)
        if self._board:
            self._board.log(step, numbers)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prompts, completions and scores of a step, one line of samples.jsonl each."""
        if self.main_process:
            for row in rows:
                self._append("samples.jsonl", {"step": step, **as_json(row)})

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
            if self._board:
                self._board.close()

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


class _Tensorboard:
    """Writes metrics for tensorboard; a resumed run hides steps logged after its checkpoint."""

    def __init__(self, run_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "run.trackers = tensorboard, but tensorboard is not installed; "
                'pip install "lmpg[tensorboard]"'
            ) from error
        self._open = lambda step: SummaryWriter(str(run_dir / "tensorboard"), purge_step=step)
        self._writer: SummaryWriter | None = None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """All numbers of a step."""
        if self._writer is None:
            self._writer = self._open(step)
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is pending."""
        if self._writer is not None:
            self._writer.close()
