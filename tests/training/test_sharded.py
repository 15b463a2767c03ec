"""Weights that are shared out over processes: what is learned is what one process learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from lmpg.runs import checkpoint
from tests.support.planted import catches
from tests.support.programs import outcome, own_parts, run_here, with_kind
from tests.support.several_runs import forked

LITTLE = {
    "sampling.max-new-tokens": 8,
    "update.epochs": 1,
    "evaluation.size": 3,
    "run.total-steps": 2,
}
GROUPS = {"update.rollout-size": 12, "algorithm.group-size": 4, "algorithm.kl-coef": 0.1}
LEAN = {"model.dtype": "bf16", "model.gradient-checkpointing": True}
TALKS = {"environment.path": "tests.support.asking:Asks", "environment.max-turns": 2}
PAIRS = {"update.rollout-size": 10, "algorithm.group-size": 2, "update.minibatch-size": 5}
ONLINE: dict[str, tuple[str, dict[str, Any]]] = {
    "shared critic": (
        "ppo",
        {
            "update.rollout-size": 6,
            "update.minibatch-size": 3,  # one of four processes has none of its rows
            "update.microbatch-tokens": 40,
            "update.epochs": 2,
            "run.total-steps": 3,
            "run.save-every": 2,
        },
    ),
    "separate critic": (
        "ppo",
        {
            "model.critic": "separate",
            "update.rollout-size": 5,  # rows and micro-batches differ between processes
            "update.minibatch-size": 5,
            "update.microbatch-size": 1,
        },
    ),
    "groups": ("grpo", {**GROUPS, **PAIRS, **LEAN}),
    "adapter": (
        "reinforce",
        {"model.lora.rank": 4, "model.lora.target-modules": "q_proj", "algorithm.kl-coef": 0.05},
    ),
    "turns": ("rloo", GROUPS | TALKS),
}
OFFLINE = {"pairs": "dpo", "texts": "sft", "scores": "reward_model"}
AMONG_FOUR = ["shared critic", "groups"]
AMONG_TWO = ["separate critic", "adapter", "turns", "pairs", "texts", "scores"]
FULL = {"run.sharding": "full"}
RESUMED = {"run.resume": True}


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
        "run.total-steps": 2,
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
        return {**with_kind(self.parts, LITTLE | ONLINE[kind][1]), **output}

    def here(self, kind: str, name: str = "one", **changes: Any) -> Path:
        """The folder of a run in this process, made when it is first asked for."""
        folder = self.folder / kind / name
        if changes or not folder.exists():
            run_here(_method(kind), {**self.flags(kind, name), **changes})
        return folder

    def import_all(self, kinds: list[str]) -> None:
        """Runs of these in this process: what they import the forks then need not."""
        for kind in kinds:
            self.here(kind)

    def spread(
        self, count: int, todo: list[tuple[str, str, dict[str, Any]]], machines: int = 1
    ) -> str:
        """(kind, name, changes) over `count` processes, one after the other; what they print."""
        runs = [(_method(kind), {**self.flags(kind, name), **x}) for kind, name, x in todo]
        return forked(count, runs, self.folder / "log", machines)

    def assert_same(self, kind: str, name: str) -> None:
        """The run has learned and sampled what one process does."""
        one, several = self.here(kind), self.folder / kind / name
        assert largest_difference(learned(several), learned(one)) <= 1e-5
        assert largest_difference(saved(several), saved(one)) <= 1e-5
        assert responses(several) == responses(one)


def _method(kind: str) -> str:
    return OFFLINE[kind] if kind in OFFLINE else ONLINE[kind][0]


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - x).abs().max()) for name, x in expected.items())


def learned(folder: Path) -> dict[str, Tensor]:
    """What was trained, from the newest checkpoint, read by one process."""
    state = checkpoint.newest(folder / "checkpoints")
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
def test_four_processes_that_share_out_weights_learn_what_one_does_which_goes_on_from_there(runs):
    runs.import_all(AMONG_FOUR)
    said = runs.spread(4, [(kind, "four", FULL) for kind in AMONG_FOUR])
    assert said.count("weights are shared out over 4 processes") == len(AMONG_FOUR)
    for kind in AMONG_FOUR:
        runs.assert_same(kind, "four")
    kind = "shared critic"
    whole = _without_the_last_step(runs.folder / kind / "four")
    assert largest_difference(learned(runs.here(kind, "four", **RESUMED)), whole) <= 1e-6


@pytest.mark.slow
def test_two_processes_that_share_out_weights_learn_what_one_does_and_go_on_to_the_bit(runs):
    runs.import_all(AMONG_TWO)
    kind, once_more = "shared critic", "separate critic"
    whole = _without_the_last_step(runs.here(kind))
    todo = [
        *((kind, "two", FULL) for kind in AMONG_TWO),
        (once_more, "stopped", FULL | {"run.total-steps": 1}),
        (once_more, "stopped", FULL | RESUMED),
        (kind, "one", FULL | RESUMED),
    ]
    assert runs.spread(2, todo).count("resumed") == 2
    for name in AMONG_TWO:
        runs.assert_same(name, "two")
    stopped, went_on = (runs.folder / once_more / name for name in ("stopped", "two"))
    assert outcome(stopped) == outcome(went_on)
    assert largest_difference(learned(runs.folder / kind / "one"), whole) <= 1e-6


@catches("weights shared out over machines in a hybrid run")
@pytest.mark.slow
def test_machines_that_are_replicas_learn_what_one_process_does(runs):
    hybrid = {"run.sharding": "hybrid"}
    runs.import_all(["groups"])
    said = runs.spread(4, [("groups", "hybrid", hybrid)], machines=2)
    assert "weights are shared out over 2 processes, in 2 replicas" in said
    runs.assert_same("groups", "hybrid")


def _without_the_last_step(folder: Path) -> dict[str, Tensor]:
    """What a run has learned, which is left as it was after the step before."""
    found = learned(folder)
    shutil.rmtree(folder / "checkpoints" / "step_3")
    (folder / "summary.json").unlink()
    return found
