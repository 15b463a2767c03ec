"""Weights that are shared out over processes: what is learned is what one process learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from lmpg.runs import checkpoint
from tests.support.planted import catches
from tests.support.programs import own_parts, run_here, with_kind
from tests.support.several_runs import forked

GROUPS = {"update.rollout-size": 12, "algorithm.group-size": 4, "algorithm.kl-coef": 0.1}
ONLINE: dict[str, tuple[str, dict[str, Any]]] = {
    "shared critic": ("ppo", {"update.microbatch-tokens": 40, "run.save-every": 2}),
    "separate critic": (
        "ppo",
        {
            "model.critic": "separate",
            "update.rollout-size": 5,  # rows and micro-batches differ between processes
            "update.minibatch-size": 5,
            "update.microbatch-size": 1,
        },
    ),
    "groups": ("grpo", {**GROUPS, "model.dtype": "bf16", "model.gradient-checkpointing": True}),
    "adapter": (
        "reinforce",
        {"model.lora.rank": 4, "model.lora.target-modules": "q_proj", "algorithm.kl-coef": 0.05},
    ),
}
OFFLINE = {"pairs": "dpo", "texts": "sft", "scores": "reward_model"}
KINDS = [*ONLINE, *OFFLINE]


def offline_flags(folder: Path, method: str) -> dict[str, Any]:
    """Flags of a stage on texts of different lengths, 5 of which make a minibatch."""
    rows = [
        {"chosen": f"film {i}: good", "rejected": f"film {i}: {'bad' * (1 + i % 3)}"}
        if method == "dpo"
        else {"text": f"film {i} was {'so ' * (i % 3)}{'good' if i % 2 else 'bad'}", "label": i % 2}
        for i in range(24)
    ]
    path = folder / f"{method}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model.path": folder / "parts" / "model",
        "data.path": path,
        "update.minibatch-size": 5,
        "update.microbatch-size": 2,
        "update.adam-eps": 1e-3,  # answers of a few tokens: a small one magnifies rounding
        "update.learning-rate": 1e-3,
        "run.total-steps": 3,
    }


class Runs:
    """Runs of every kind on the same parts: in this process, and over several that share out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = own_parts(folder / "parts")

    def flags(self, kind: str, name: str) -> dict[str, Any]:
        """The flags of a run that is called `name`."""
        output = {"run.output-dir": str(self.folder / kind / name), "run.report-every": 0}
        if kind in OFFLINE:
            return offline_flags(self.folder, OFFLINE[kind]) | output
        return {**with_kind(self.parts, ONLINE[kind][1]), "evaluation.size": 3, **output}

    def here(self, kind: str, name: str = "one", **changes: Any) -> Path:
        """The folder of a run in this process."""
        return run_here(_method(kind), {**self.flags(kind, name), **changes})

    def spread(self, count: int, todo: list[tuple[str, str, dict[str, Any]]]) -> str:
        """(kind, name, changes) over `count` processes, one after the other; what they print."""
        runs = [(_method(kind), {**self.flags(kind, name), **x}) for kind, name, x in todo]
        return forked(count, runs, self.folder / "log")


def _method(kind: str) -> str:
    return OFFLINE[kind] if kind in OFFLINE else ONLINE[kind][0]


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - x).abs().max()) for name, x in expected.items())


def learned(folder: Path, checkpoints: str = "checkpoints") -> dict[str, Tensor]:
    """What was trained, from the newest checkpoint, read by one process."""
    state = checkpoint.newest(folder / checkpoints)
    assert state is not None
    return state[1]["module" if "module" in state[1] else "policy"]


def saved(folder: Path) -> dict[str, Tensor]:
    """Everything in final/, by file and name."""
    files = sorted((folder / "final").rglob("*.safetensors"))
    return {f"{file.name} {k}": x for file in files for k, x in load_file(file).items()}


def responses(folder: Path) -> list[str]:
    path = folder / "samples.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["completion"] for row in rows if "score" in row]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("sharded"))


@catches(
    "gradients of blocks averaged over processes",
    "processes with fewer micro-batches than others leave early",
    "the gradient's norm of one process's parts",
)
@pytest.mark.slow
def test_processes_that_share_out_weights_learn_what_one_does(runs):
    full = {"run.sharding": "full"}
    said = runs.spread(2, [(kind, "two", full) for kind in KINDS])
    assert said.count("weights are shared out over 2 processes") == len(KINDS)
    for kind in KINDS:
        one, two = runs.here(kind), runs.folder / kind / "two"
        assert largest_difference(learned(two), learned(one)) <= 1e-5
        assert largest_difference(saved(two), saved(one)) <= 1e-5
        assert responses(two) == responses(one)
    # the last of three steps again: by another number of processes, and by one without sharing
    for path in ("one", "two"):
        _forget_the_last_step(runs.folder / "shared critic" / path)
    kind, resumed = "shared critic", {"run.resume": True}
    alone = runs.here(kind, "two", **resumed)
    others = runs.spread(3, [(kind, "one", {**full, **resumed})])
    assert "resumed" in others
    whole = learned(runs.folder / kind / "one", "aside")
    assert largest_difference(learned(alone), whole) <= 1e-6
    assert largest_difference(learned(runs.folder / kind / "one"), whole) <= 1e-6


def _forget_the_last_step(folder: Path) -> None:
    """Leave a run as it was after its second step."""
    (folder / "aside").mkdir()
    (folder / "checkpoints" / "step_3").rename(folder / "aside" / "step_3")
    (folder / "summary.json").unlink()
