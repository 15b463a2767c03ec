"""The disk that a run needs, said and judged before its first step."""

from __future__ import annotations

import shutil
from pathlib import Path

from lmpg.settings.section import UserError

WORTH_A_LINE = 100_000_000
"""Bytes of a checkpoint from which on the need is said; a smaller one is no matter."""


def disk_lines(folder: Path, checkpoint: int, model: int, models: int, keep: int) -> list[str]:
    """Lines for the log about what a run in `folder` will write; UserError where the disk has no
    room for a single checkpoint.

    checkpoint, model: bytes of each. models: how many are written (final/, best/). keep: newest
    checkpoints kept; one more is written before the oldest is deleted, and the one before the
    newest stays until the newest is known to be good.
    """
    free = shutil.disk_usage(folder).free
    if free < checkpoint:
        raise UserError(
            f"run.output_dir = {folder}: its disk has {_gb(free)} free, expected {_gb(checkpoint)} "
            "at least, which one checkpoint takes. Make room, choose another --run.output-dir, or "
            "train less: an adapter with --model.lora.rank 8"
        )
    if checkpoint < WORTH_A_LINE:
        return []
    most = max(2, keep) + 1
    there = len(list((folder / "checkpoints").glob("step_*")))
    need = most * checkpoint + models * model
    lines = [
        f"disk: {_gb(checkpoint)} per checkpoint, at most {most} at once with run.keep_checkpoints "
        f"= {keep}, and up to {_gb(model)} per model in final/ and best/: {_gb(need)}; "
        f"{_gb(free)} are free"
    ]
    if free < need - min(there, most) * checkpoint:
        lines.append(
            f"warning: the disk of {folder} may be full before the run ends; it then stops, and "
            "goes on with --run.resume once there is room"
        )
    return lines


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
