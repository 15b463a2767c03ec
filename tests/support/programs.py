"""Whole runs on tiny parts of one's own, and what they leave in their folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from lmpg.cli.main import train_by_name
from lmpg.runs import checkpoint
from lmpg.runs import folder as run_folder
from tests.support.tiny import save_tiny

ROOT = Path(__file__).parents[2]
REWARD = """
def letters(completions, number):
    scores = [completion.count("a") - len(completion) / 20 for completion in completions]
    return [None if n % 7 == 3 else score for n, score in zip(number, scores)]


def coarse(completions, number):
    return [None if n % 7 == 3 else float("a" in c) for n, c in zip(number, completions)]
"""
SMALL = {
    "sampling.max-new-tokens": 12,
    "update.rollout-size": 8,
    "update.minibatch-size": 4,
    "update.microbatch-size": 4,
    "update.epochs": 2,
    "update.learning-rate": 1e-4,  # the model is tiny
    "update.adam-eps": 1e-5,
    "evaluation.size": 3,
    "run.total-steps": 3,
    "run.samples-every": 1,
}


def own_parts(folder: Path) -> dict[str, Any]:
    """Flags of a tiny model, prompts of different lengths and a reward that leaves some out."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tiny(folder / "model")
    save_tiny(folder / "other", seed=7)
    rows = [{"prompt": "abc de fghi jkl"[: 1 + 5 * i % 14], "number": i} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return {
        "model.path": folder / "model",
        "data.path": folder / "prompts.jsonl",
        "rewards.functions": f"{folder / 'reward.py'}:letters",
        **SMALL,
    }


def with_kind(parts: dict[str, Any], kind: dict[str, Any]) -> dict[str, Any]:
    """Flags of `kind` over the parts; for refills a reward that few groups have a spread in, and
    that one too where several are to be combined."""
    reward: Any = str(parts["rewards.functions"])
    folder = parts["model.path"].parent
    named = {key: folder / kind[key] for key in ("model.teacher", "model.reference") if key in kind}
    if "sampling.max-refills" in kind:
        reward = reward.replace(":letters", ":coarse")
    if "rewards.combine" in kind:
        reward = (reward, reward.replace(":letters", ":coarse"))
    return {**parts, "rewards.functions": reward, **kind, **named}


SHAPED = {
    "rewards.normalise": "running",
    "rewards.score-clip": 1.5,
    "rewards.missing-eos-penalty": 0.2,
    "rewards.overlong-tokens": 4,
    "rewards.truncated": "bootstrap",
    "model.critic": "separate",
    "update.critic-learning-rate": 1e-3,
}


def module_at(path: Path) -> ModuleType:
    """A Python file that is no module of a package, imported."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(flags: dict[str, Any]) -> list[str]:
    """The command line of flags; True stands for the flag alone, a tuple for several values."""
    return [
        word
        for name, value in flags.items()
        for word in [f"--{name}", *([] if value is True else _several(value))]
    ]


def _several(value: Any) -> list[str]:
    return [str(x) for x in (value if isinstance(value, tuple | list) else (value,))]


def run_here(algorithm: str, flags: dict[str, Any]) -> Path:
    """A run in this process; returns its folder."""
    folder = Path(flags["run.output-dir"])
    try:
        train_by_name(algorithm, words(flags))
    finally:
        let_go()
    return folder


def let_go() -> None:
    """Give up the folders that runs in this process hold."""
    for path in run_folder.opened():
        run_folder.RunFolder(path, "resuming").close()


def weights(folder: Path) -> dict[str, Tensor]:
    """What was trained, from the newest checkpoint."""
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return found[1]["policy"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if not k.startswith(("time/", "perf/"))} for x in lines]


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run found and learned, to the last bit; times left out."""
    summary = json.loads((folder / "summary.json").read_text())
    saved = [*(folder / "final").rglob("*.safetensors"), *(folder / "best").rglob("*.safetensors")]
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    return {
        "metrics": metrics(folder),
        "samples": (folder / "samples.jsonl").read_bytes(),
        "summary": {k: summary[k] for k in ("exit_reason", "before", "after", "best", "steps")},
        "weights": {str(path.relative_to(folder)): path.read_bytes() for path in saved},
        "updater": bytes_of(newest[1]["updater"]),
        "step": newest[0],
    }


def bytes_of(value: Any) -> Any:
    """Nested values with the bytes of every tensor, so that == compares bits."""
    if isinstance(value, Tensor):
        return value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: bytes_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bytes_of(item) for item in value]
    return value


def launched(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command as a user would give it in the repository's folder, or another `cwd`, with its
    output."""
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=env,
        text=True,
        capture_output=True,
        timeout=240,
        **{"cwd": ROOT, **options},
    )
