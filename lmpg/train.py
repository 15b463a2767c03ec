"""Train with any method by its name: an algorithm, a stage, or a preset of one."""

from __future__ import annotations

from collections.abc import Sequence

from lmpg.algorithms import ALGORITHMS
from lmpg.presets import named_preset
from lmpg.train_language import train_language
from lmpg.train_offline import STAGES, train_stage


def train(name: str, argv: Sequence[str] | None = None) -> None:
    """Train with the method or preset `name`; `argv` holds its flags (None: the command line's)."""
    method, preset = named_preset(name, [*ALGORITHMS, *STAGES])
    if method in ALGORITHMS:
        train_language(name, ALGORITHMS[method], preset, argv)
    else:
        train_stage(name, method, preset, argv)
