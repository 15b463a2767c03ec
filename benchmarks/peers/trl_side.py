"""What TRL's trainers share as contestants: a command line, and a turn that ends with a log."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lockstep import Turn
from transformers import PrinterCallback, Trainer, TrainerCallback


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both trainers have."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("model")
    found.add_argument("prompts", type=Path, help="JSONL of rows with a prompt")
    found.add_argument("--steps", type=int, required=True)
    found.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    found.add_argument("--attention", default="sdpa")
    found.add_argument("--device", default="cpu")
    found.add_argument("--length", type=int, default=64, help="tokens per response")
    found.add_argument("--microbatch", type=int, default=64, help="rows per forward")
    return found


def texts(prompts: Path) -> list[str]:
    """The prompts of the file."""
    return [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]


class Told(TrainerCallback):
    """Ends a turn where the trainer has logged a step.

    length: from its log, the mean length of its responses; None where the log is no step's.
    """

    def __init__(self, length: Callable[[dict[str, Any]], float | None]) -> None:
        self.turn, self.length = Turn(), length

    def on_log(self, args, state, control, logs=None, **_) -> None:
        """A step with everything that belongs to it is over."""
        length = self.length(logs or {})
        if length is not None:
            self.turn(length=length)


def train_told(trainer: Trainer, length: Callable[[dict[str, Any]], float | None]) -> None:
    """Train, printing nothing, turn by turn."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Told(length))
    trainer.train()
