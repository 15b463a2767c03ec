"""Memory, layout and number of processes never change what is learned, in whole steps."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmpg.algorithms import ALGORITHMS
from lmpg.language.rollouts.collect import LanguageSource
from lmpg.language.stages import STAGES
from lmpg.settings.presets import named_preset
from lmpg.training.source import Collected
from lmpg.training.update import Updater
from tests.support.planted import catches
from tests.support.programs import (
    SHAPED,
    launched,
    metrics,
    own_parts,
    run_here,
    weights,
    with_kind,
    words,
)
from tests.support.several_runs import forked

TOLERANCE = 1e-5
GROUPS = {"update.rollout-size": 20, "algorithm.group-size": 4, "algorithm.kl-coef": 0.1}
TIGHT = {"algorithm.clip": 0.3, "algorithm.clip-high": 0.4}  # GSPO's own bounds leave no gradient
ABOVE = {"algorithm.keep": 3, "algorithm.kl-coef": 0, "algorithm.min-score": -0.4}
REFILLED = {
    "sampling.max-refills": 2,
    "rewards.overlong-tokens": 4,
    "run.seed": 1,  # from 0 a random number lies within rounding of two tokens, and one is drawn
}
OPTIONS = {
    "algorithm.dual-clip": 1.5,
    "algorithm.kl-in": "loss",
    "algorithm.reduction": "fixed_length",
    "algorithm.lam-critic": 1.0,
    "algorithm.lam-alpha": 0.5,
    "algorithm.whiten-minibatches": True,
    "algorithm.entropy-coef": 0.01,
    "update.target-kl": 0.005,
    "update.anneal": "clip",
}
# conversations: two methods learn from these, as one turn is what a response is
TALKS = {"environment.path": "tests.support.asking:Asks", "environment.max-turns": 2}
LEAN = {"model.dtype": "bf16", "model.gradient-checkpointing": True}
KINDS = {
    "ppo": ("ppo", {}),
    "ppo with options": ("ppo", OPTIONS),
    "ppo_penalty": ("ppo_penalty", {}),
    "reinforce": ("reinforce", {"algorithm.baseline": "value"}),
    "a2c": ("a2c", TALKS | {"rewards.truncated": "bootstrap"}),
    "reinforce_plus_plus": ("reinforce_plus_plus", {}),
    "reinforce_plus_plus_baseline": ("reinforce_plus_plus_baseline", GROUPS),
    "rloo": ("rloo", GROUPS | TALKS),
    "remax": ("remax", {}),
    "off_policy": ("off_policy", {"algorithm.ratio": "sequence"}),
    "grpo": ("grpo", GROUPS),
    "dr_grpo": ("dr_grpo", GROUPS),
    "dapo": ("dapo", GROUPS | REFILLED),
    "gspo": ("gspo", GROUPS | TIGHT),
    "gmpo": ("gmpo", GROUPS | {"algorithm.dual-clip": 3.0, "rewards.truncated": "mask_loss"}),
    "cispo": ("cispo", GROUPS),
    "sapo": ("sapo", GROUPS),
    "gdpo": ("gdpo", GROUPS | {"rewards.combine": "standardised"}),
    "opo": ("opo", GROUPS | {"algorithm.kl-coef": 0}),
    "raft": ("raft", GROUPS | {"algorithm.keep": 2, "algorithm.kl-coef": 0}),
    # 4, 6 and 7 responses are kept, so that processes learn from differing numbers of them
    "raft above a score": ("raft", GROUPS | ABOVE),
    "distillation": ("distillation", {"model.teacher": "other"}),
    "gkd": ("gkd", {"model.teacher": "other", "model.lora.rank": 8, "update.adam-eps": 1e-3}),
    "shaped": ("ppo", SHAPED),
    # adapters start at 0: with a small epsilon Adam makes rounding large beside them
    "lora": ("ppo", {"model.lora.rank": 8, "update.adam-eps": 1e-3}),
    "lora over bf16": ("ppo", {"model.lora.rank": 8, "update.adam-eps": 1e-3} | LEAN),
    "recomputed": ("ppo", {"model.gradient-checkpointing": True, "model.critic": "separate"}),
}
if importlib.util.find_spec("bitsandbytes"):
    KINDS["lora over 4 bits"] = ("ppo", {**KINDS["lora"][1], "model.quantisation": "nf4"})
AMONG_FOUR = ["ppo", "a2c", "rloo", "remax", "dapo", "grpo", "raft above a score", "gkd", "shaped"]
"""Runs with every way of sharing out rows: alone, in groups, refilled, in turns, left out."""
every_kind = pytest.mark.parametrize(
    "kind",
    ["ppo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:])],
    scope="module",  # all tests of a kind in turn: processes that share the tests share no runs
)


class Runs:
    """Runs on the same parts, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = own_parts(folder / "parts")

    def flags(self, kind: str, name: str, **changes: object) -> dict:
        """Everything but the algorithm's name; `changes` as on the command line."""
        output = {"run.output-dir": str(self.folder / kind / name)}
        return {**with_kind(self.parts, KINDS[kind][1]), **output, **changes}

    def __call__(self, kind: str, name: str = "plain", **changes: object) -> Path:
        folder = self.folder / kind / name
        if not folder.exists():
            run_here(KINDS[kind][0], self.flags(kind, name, **changes))
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all parameters, relative to the largest number in each."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - x).abs().max() / x.abs().max()) for name, x in expected.items())


def assert_same_result(found: Path, expected: Path) -> None:
    assert largest_difference(weights(found), weights(expected)) <= TOLERANCE
    lines, wanted = metrics(found), metrics(expected)
    assert len(lines) == len(wanted) == 3
    for line, other in zip(lines, wanted):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)


def assert_same_samples(found: Path, expected: Path) -> None:
    """The same texts and scores, and the same numbers of tokens but for rounding."""
    pairs = zip(samples(found), samples(expected), strict=True)
    for (row, tokens), (other, known) in pairs:
        assert row == other
        assert tokens.keys() == known.keys()
        for name, value in tokens.items():
            if not isinstance(value, list) or name == "texts":
                assert value == known[name]
                continue
            mine, its = ([math.nan if x is None else x for x in xs] for xs in (value, known[name]))
            assert mine == pytest.approx(its, rel=5e-3, abs=1e-4, nan_ok=True)


def samples(folder: Path) -> list[tuple[dict, dict]]:
    """The rows of samples.jsonl, each with what it says of its tokens."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert rows
    return [(row, row.pop("tokens")) for row in rows]


@every_kind
def test_the_runs_learn_from_prompts_of_many_lengths_and_leave_out_what_has_no_score(runs, kind):
    lines = metrics(runs(kind))
    assert max(line["reward_errors"] for line in lines) >= 1
    assert any(x["completions/min_length"] < x["completions/max_length"] for x in lines)
    once = runs(kind, "one step", **{"run.total-steps": 1})
    assert largest_difference(weights(once), weights(runs(kind))) > 100 * TOLERANCE


@catches("loss weights counted per micro-batch in a whole run")
@pytest.mark.parametrize(("setting", "number"), [("size", 1), ("size", 3), ("tokens", 40)])
@every_kind
def test_microbatches_do_not_change_the_result(runs, kind, setting, number):
    changed = {f"update.microbatch-{setting}": number}
    assert_same_result(runs(kind, f"microbatch {setting} {number}", **changed), runs(kind))


def with_more_padding(collected: Collected) -> Collected:
    """3 columns of an arbitrary token before each prompt, 2 after each response."""

    def wider(name: str, x: Tensor) -> Tensor:
        return F.pad(x, (3, 0) if name == "prompt_ids" else (0, 2), value=7 if "ids" in name else 0)

    rows = collected.rollout
    steps = {k: wider(k, x) for k, x in vars(rows).items() if k.endswith("_BT") and x is not None}
    inputs = {k: wider(k, x) if x.ndim > 1 else x for k, x in rows.inputs.items()}
    return replace(collected, rollout=replace(rows, inputs=inputs, **steps))


@every_kind
def test_padding_does_not_change_the_result(runs, kind, monkeypatch):
    collect = LanguageSource.collect
    monkeypatch.setattr(
        LanguageSource, "collect", lambda self, step: with_more_padding(collect(self, step))
    )
    assert_same_result(runs(kind, "padded"), runs(kind))


@every_kind
def test_the_order_of_rows_does_not_change_the_result(runs, kind, monkeypatch):
    accumulate = Updater._accumulate

    def backwards(self, algorithm, batch, weights_BT, diagnostics):
        order = torch.arange(len(weights_BT)).flip(0)
        accumulate(self, algorithm, batch.rows(order), weights_BT[order], diagnostics)

    monkeypatch.setattr(Updater, "_accumulate", backwards)
    assert_same_result(runs(kind, "backwards"), runs(kind))


def test_every_algorithm_is_here():
    methods = [*ALGORITHMS, *STAGES]
    assert {named_preset(name, methods)[0] for name, _ in KINDS.values()} == set(ALGORITHMS)


@catches(
    "prompts gathered with their padding on the right",
    "gradients averaged over processes instead of summed",
    "every process draws the first rows' random numbers",
    "accelerate not told of the CPU, so that torchrun starts separate runs",
    "an update ends by the KL that one process sees",
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "kinds"), [*((2, [*KINDS][start::3]) for start in range(3)), (4, AMONG_FOUR)]
)
def test_the_number_of_processes_does_not_change_the_result(runs, count, kinds):
    flags = {kind: runs.flags(kind, f"{count} processes") for kind in kinds}
    todo = [(KINDS[kind][0], flags[kind]) for kind in kinds]
    said = forked(count, todo, runs.folder / f"log of {count} {kinds[0]}")
    assert said.count(f"{count} processes on cpu") == len(kinds)
    for kind in kinds:
        assert_same_result(runs(kind, f"{count} processes"), runs(kind))
        assert_same_samples(runs(kind, f"{count} processes"), runs(kind))


@pytest.mark.slow
def test_torchrun_starts_two_processes_that_end_without_a_word_of_warning(runs):
    flags = runs.flags("ppo", "torchrun", **{"update.rollout-size": 6, "update.minibatch-size": 3})
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    done = launched(*torchrun, "scripts/train_ppo.py", *words(flags))
    assert done.returncode == 0
    rewards_say = [x for x in done.stderr.splitlines() if "reward letters" in x]
    assert done.stderr.splitlines() == rewards_say
    assert done.stdout.startswith("2 processes on cpu\n")
    one = runs("ppo", "one process", **{"update.rollout-size": 6, "update.minibatch-size": 3})
    assert_same_result(runs("ppo", "torchrun"), one)


@pytest.mark.slow
def test_a_launcher_that_starts_fewer_processes_than_it_was_asked_for_is_refused(runs):
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2)
    done = launched(*launcher, "scripts/train_ppo.py", *words(runs.flags("ppo", "accelerate")))
    assert done.returncode == 1
    assert "\nerror: 2 processes were asked for" in done.stderr
    assert "torchrun --nproc_per_node 2" in done.stderr
