"""A run that died at any moment and is resumed ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal

import pytest

from lmpg.runs import checkpoint
from lmpg.runs.tracking import Tracker
from tests.support.doomed import live, moments
from tests.support.planted import catches
from tests.support.programs import SHAPED, metrics, outcome, own_parts, run_here, with_kind

LENGTH = {
    "run.total-steps": 4,
    "run.save-every": 2,
    "evaluation.every": 2,
    "update.learning-rate": 1e-3,
}
AGENT = {
    "update.rollout-size": 128,
    "update.minibatch-size": 64,
    "update.epochs": 2,
    "env.num-envs": 4,
    "evaluation.size": 2,
    "evaluation.every": 4,
    "run.save-every": 2,
    "run.total-timesteps": 1100,
}
NORMALISED = {"env.normalise-observations": True, "env.normalise-rewards": True}
TALKS = {"environment.path": "tests.support.asking:Asks", "environment.max-turns": 3}
"""Conversations: a kill falls into the middle of an episode, too."""
LEAN = {
    "model.lora.rank": 8,
    "model.dtype": "bf16",
    "model.precision": "bf16",
    "model.gradient-checkpointing": True,
}
KINDS = {
    "ppo": ("ppo", {"algorithm.kl-target": 0.01}),
    "reinforce": ("reinforce", {"algorithm.baseline": "ema", **TALKS}),
    "lora": ("ppo", {"model.lora.rank": 8}),
    "lora over bf16": ("ppo", LEAN),
    "shaped": ("ppo", SHAPED),
    "refilled, stopped": (
        "grpo",
        {"algorithm.group-size": 4, "sampling.max-refills": 2, "sampling.stop": "e"},
    ),
    "cartpole": ("gym", {"env.id": "CartPole-v1", **AGENT}),
    "pendulum": ("gym", {"env.id": "Pendulum-v1", **AGENT}),
    "cartpole, normalised": ("gym", {"env.id": "CartPole-v1", **AGENT, **NORMALISED}),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return own_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def flags(parts, tmp_path):
    return {**parts, **LENGTH, **KINDS["ppo"][1], "run.output-dir": tmp_path / "run"}


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """What PPO comes to when nothing interrupts it."""
    place = {"run.output-dir": tmp_path_factory.mktemp("whole") / "run"}
    return outcome(run_here("ppo", {**parts, **LENGTH, **KINDS["ppo"][1], **place}))


@pytest.fixture
def interrupted(flags, monkeypatch):
    """The folder of a run that was asked to stop in its third step."""
    log = Tracker.log

    def asking(self, step, numbers):
        log(self, step, numbers)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)  # the terminal's, and a launcher's echo
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Tracker, "log", asking)
    with pytest.raises(KeyboardInterrupt):
        run_here("ppo", flags)
    folder = flags["run.output-dir"]
    monkeypatch.undo()
    assert (folder / "summary.json").read_text().count('"exit_reason": "interrupted"') == 1
    return folder


def test_the_uninterrupted_run_changes_all_that_must_be_saved(whole):
    coefs = [line["objective/kl_coef"] for line in whole["metrics"]]
    assert len(set(coefs)) > 1
    assert whole["summary"]["best"]
    assert len(whole["weights"]) == 4  # model and value head, of final and best


@catches("KL coefficient or optimizer not restored")
def test_being_asked_to_stop_saves_and_resuming_ends_as_if_nothing_had_happened(
    whole, flags, interrupted, capsys
):
    assert [line["step"] for line in metrics(interrupted)] == [1, 2, 3]
    assert not (interrupted / "final").exists()
    run_here("ppo", {**flags, "run.resume": True})
    said = capsys.readouterr().out
    assert "at step 3" in said
    assert "self-test" not in said
    assert outcome(interrupted) == whole


def test_a_torn_checkpoint_is_skipped_with_a_warning(whole, flags, interrupted, caplog, capsys):
    torn = interrupted / "checkpoints" / "step_3" / "tensors.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    run_here("ppo", {**flags, "run.resume": True})
    assert "step_3 is not whole (tensors.safetensors has" in caplog.text
    assert "at step 2" in capsys.readouterr().out
    assert outcome(interrupted) == whole


def test_before_the_first_checkpoint_a_resumed_run_starts_over(whole, flags, interrupted, capsys):
    shutil.rmtree(interrupted / "checkpoints")
    run_here("ppo", {**flags, "run.resume": True})
    said = capsys.readouterr().out
    assert "starting over" in said
    assert "self-test" in said
    assert outcome(interrupted) == whole


def test_a_finished_run_says_so_and_is_left_alone(whole, flags, capsys):
    folder = run_here("ppo", flags)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert "self-test: ratio 1.000000, KL to reference 0.000000" in capsys.readouterr().out
    run_here("ppo", {**flags, "run.resume": True})
    assert "has finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_finished_run_can_be_made_longer(whole, flags):
    folder = run_here("ppo", {**flags, "run.total-steps": 3})
    run_here("ppo", {**flags, "run.resume": True})
    assert outcome(folder) == whole


@catches("running baseline not restored")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(kind, parts, tmp_path):
    program, own = KINDS[kind]
    flags = own if program == "gym" else {**with_kind(parts, own), **LENGTH}
    killed = {**flags, "run.output-dir": tmp_path / "killed", "run.resume": True}
    whole = {**flags, "run.output-dir": tmp_path / "whole"}
    number = moments(program, whole)
    dice = random.Random(kind)
    codes = [live(program, killed, at=dice.randrange(2, 2 * number // 3))[0] for _ in range(5)]
    assert codes.count(-signal.SIGKILL) >= 3
    code, said = live(program, killed)
    assert code == 0, said
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@catches("checkpoint written in place, and the run killed")
@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 4, 7, 8])
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    at, whole, flags, tmp_path
):
    code, _ = live("ppo", flags, at=at, within="checkpoints/.tmp-step_4")
    assert code == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "run" / "checkpoints").glob(".tmp-step_4*")]
    assert len(left) == 1
    code, said = live("ppo", {**flags, "run.resume": True})
    assert code == 0
    assert "at step 2" in said
    assert outcome(tmp_path / "run") == whole
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))
    assert checkpoint.newest_step(tmp_path / "run" / "checkpoints") == 4


@pytest.mark.parametrize("model", [LEAN, {"model.gradient-checkpointing": True}])
def test_a_run_that_saves_memory_is_resumed_bit_for_bit(model, parts, tmp_path):
    flags = {**parts, **LENGTH, "update.epochs": 1, **model}
    whole = run_here("ppo", {**flags, "run.output-dir": tmp_path / "whole"})
    part = {**flags, "run.output-dir": tmp_path / "part"}
    run_here("ppo", {**part, "run.total-steps": 3})
    run_here("ppo", {**part, "run.resume": True})
    assert outcome(tmp_path / "part") == outcome(whole)
    assert metrics(whole)[-1]["objective/kl"] != 0


@catches("a refreshed reference not restored")
@pytest.mark.parametrize(
    ("program", "own"),
    [
        ("ppo", {"model.reference-refresh": 2}),
        ("ppo", {"model.reference-refresh": 1, "model.lora.rank": 4, "algorithm.kl-in": "loss"}),
        ("ppo", {"model.reference": "other"}),
        ("gkd", {"model.teacher": "other"}),
    ],
)
def test_a_run_with_a_reference_of_its_own_is_resumed_bit_for_bit(program, own, parts, tmp_path):
    flags = {**with_kind(parts, own), **LENGTH, "update.epochs": 1}
    whole = run_here(program, {**flags, "run.output-dir": tmp_path / "whole"})
    part = {**flags, "run.output-dir": tmp_path / "part"}
    run_here(program, {**part, "run.total-steps": 3})
    run_here(program, {**part, "run.resume": True})
    assert outcome(tmp_path / "part") == outcome(whole)
    assert metrics(whole)[0]["objective/kl"] != 0 or "model.reference-refresh" in own
