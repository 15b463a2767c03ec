"""Short runs of an agent in this process, which take a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmpg.cli.main import train_agent
from tests.support.programs import let_go, metrics, words

AGENT = {
    "env.id": "CartPole-v1",
    "update.rollout-size": 64,
    "update.minibatch-size": 64,
    "update.epochs": 1,
    "env.num-envs": 4,
    "evaluation.size": 1,
    "run.save-every": 1,
    "run.total-timesteps": 256,
}
FINISHED = [1, 2, 3, 4]


def agent(flags: dict[str, Any]) -> Path:
    """A run in this process, which lets go of its folder; returns the folder."""
    try:
        return train_agent(words(flags))
    finally:
        let_go()


def resumed(flags: dict[str, Any], **changed: Any) -> list[int]:
    """The steps in the log once the run was resumed to its end."""
    folder = agent({**flags, "run.resume": True, **changed})
    return [line["step"] for line in metrics(folder)]


def saved(folder: Path) -> list[str]:
    """Names of what is in checkpoints/."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())
