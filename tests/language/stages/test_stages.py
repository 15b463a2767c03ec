"""Whole runs of supervised and reward-model training: their folder, their end, their resuming."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lmpg.cli.main import train_by_name
from lmpg.language.models.critic import VALUE_HEAD_FILE as VALUE_HEAD
from lmpg.settings.section import UserError
from lmpg.training.offline import Offline
from tests.support.planted import catches
from tests.support.programs import let_go, metrics, words
from tests.support.several_runs import forked
from tests.support.tiny import save_tiny

METHODS = {"packed": "sft", "lora": "dpo"}  # others are called as their method
KINDS = ["sft", "packed", "reward_model", "dpo", "lora", "kto"]
UPDATE = {"update.microbatch-size": 4, "update.epochs": 2, "update.schedule": "linear"}
OF_PAIRS = {  # answers of a few tokens: with a small epsilon Adam magnifies rounding
    "update.adam-eps": 1e-3,
    "update.learning-rate": 1e-3,
    "evaluation.size": 6,
    "evaluation.max-new-tokens": 5,
}
JUDGED = {"loss", "margin", "pair_accuracy", "distinct", "length", "kl"}


@pytest.fixture(autouse=True)
def folders_given_back():
    """A process holds its run folders until it ends."""
    yield
    let_go()


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Callable[[str], dict[str, Any]]:
    """Flags of each kind: a tiny model, and labelled texts or preferences."""
    folder = tmp_path_factory.mktemp("parts")
    rows = [
        {"text": f"film {i} was {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(50)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"chosen": f"film {i} was: good", "rejected": f"film {i} was: {'bad' * (1 + i % 3)}"}
        for i in range(50)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    model = save_tiny(folder / "model")

    def flags(kind: str) -> dict[str, Any]:
        rows = "rows" if kind in ("sft", "packed", "dft", "reward_model") else "pairs"
        own = {"packed": {"data.packing": True}, "lora": {"model.lora.rank": 4}}.get(kind, {})
        if rows == "pairs":
            own = {**own, **OF_PAIRS}
        own["update.minibatch-size"] = 2 if kind == "packed" else 8
        return {"model.path": model, "data.path": folder / f"{rows}.jsonl", **UPDATE, **own}

    return flags


def run(kind: str, flags: dict[str, Any], folder: Path, **more: Any) -> None:
    train_by_name(method(kind), words({**flags, "run.output-dir": folder, **more}))


def method(kind: str) -> str:
    return METHODS.get(kind, kind)


def saved(folder: Path, kind: str) -> Path:
    return folder / "merged" if kind == "lora" else folder


@pytest.mark.parametrize(
    ("kind", "steps", "figures"),
    [
        ("sft", 10, {"loss", "perplexity"}),  # 40 texts, twice
        ("packed", 12, {"loss", "perplexity"}),  # 12 rows, twice
        ("reward_model", 6, {"loss", "pair_accuracy", "margin"}),  # 20 pairs of texts
        ("dpo", 10, JUDGED),
        ("lora", 10, JUDGED),
        ("simpo", 10, JUDGED),
        ("orpo", 10, JUDGED),
        ("dft", 10, {"loss", "perplexity"}),
        ("kto", 20, JUDGED),  # 80 answers
    ],
)
def test_a_run_leaves_figures_weights_and_a_report(kind, steps, figures, parts, tmp_path, capsys):
    folder = tmp_path / "run"
    run(kind, parts(kind), folder, **{"evaluation.every": 4})
    assert "\nmemory: about 0.6" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["exit_reason"], summary["steps"]) == ("finished", steps)
    assert summary["before"].keys() == summary["after"].keys() == figures
    assert summary["after"]["loss"] < summary["before"]["loss"]
    assert summary["best"]["step"] % 4 == 0
    assert [line["step"] for line in metrics(folder)] == list(range(1, steps + 1))
    for name in ("final", "best"):
        reward = kind == "reward_model"
        loaded = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
        loaded.from_pretrained(saved(folder / name, kind))
        assert not (folder / name / VALUE_HEAD).exists()
    assert "<svg" in (folder / "report.html").read_text()
    assert (folder / "config.yaml").exists()


@catches("BCO's mean reward lost on resume")
@pytest.mark.parametrize("kind", [*KINDS, "bco"])
def test_a_run_broken_off_and_resumed_equals_one_that_was_not(kind, parts, tmp_path, monkeypatch):
    flags = {**parts(kind), "run.save-every": 2, "evaluation.every": 3}
    run(kind, flags, tmp_path / "whole")
    iterate = Offline.iterate

    def breaks_down(self: Offline, step: int) -> dict[str, float]:
        if step == 6:
            raise KeyboardInterrupt
        return iterate(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Offline, "iterate", breaks_down)
        with pytest.raises(KeyboardInterrupt):
            run(kind, flags, tmp_path / "broken")
    let_go()
    assert len(metrics(tmp_path / "broken")) == 5
    run(kind, flags, tmp_path / "broken", **{"run.resume": True})
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    found, expected = (
        load_file(saved(tmp_path / name / "final", kind) / "model.safetensors")
        for name in ("broken", "whole")
    )
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("broken", "whole")
    ]
    for key in ("before", "after", "best", "num_tokens"):
        assert summaries[0][key] == summaries[1][key]


@catches("offline run goes on after a gradient of NaN")
def test_a_gradient_that_is_not_finite_stops_the_run_and_harms_nothing(
    parts, tmp_path, monkeypatch
):
    iterate = Offline.iterate

    def poisoned(self: Offline, step: int) -> dict[str, float]:
        if step == 3:
            parameter = next(self.source.module.parameters())
            parameter.register_hook(lambda gradient: gradient * math.nan)
        return iterate(self, step)

    monkeypatch.setattr(Offline, "iterate", poisoned)
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"step 3: the gradient was inf or NaN.*learning_rate"):
        run("sft", parts("sft"), folder, **{"run.save-every": 1})
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exit_reason"].startswith("stopped: step 3")
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["diverged_step_2", "step_1"]  # what cannot learn is no place to go on from
    assert not (folder / "final").exists()


def test_a_reward_model_of_labels_that_do_not_differ_is_refused_before_training(parts, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "a", "label": 1}) + "\n" for _ in range(20)))
    with pytest.raises(UserError, match="two different values"):
        run("reward_model", parts("reward_model"), tmp_path / "run", **{"data.path": rows})
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def of_two(parts, tmp_path_factory) -> Path:
    """A folder with a run of each kind over two processes, by `run-KIND`."""
    folder = tmp_path_factory.mktemp("two")
    todo = [
        (method(k), {**parts(k), "evaluation.every": 2, "run.output-dir": folder / f"run-{k}"})
        for k in KINDS
    ]
    said = forked(2, todo, folder / "log")
    assert said.count("2 processes on cpu\n") == len(KINDS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(kind, of_two, parts, tmp_path):
    one, two = tmp_path / "one", of_two / f"run-{kind}"
    run(kind, parts(kind), one, **{"evaluation.every": 2})
    lines = [metrics(folder) for folder in (two, one)]
    for first in (lines[0][0], lines[1][0]):  # policy and reference tie there, but for rounding
        first.pop("rewards/accuracy", None)
    for found, expected in zip(*lines, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    found, expected = (
        load_file(saved(folder / "final", kind) / "model.safetensors") for folder in (two, one)
    )
    for name, x in expected.items():
        assert float((found[name] - x).abs().max() / x.abs().max()) <= 1e-5
