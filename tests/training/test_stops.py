"""However a run ends before its time, what was good is kept and the way to go on can be gone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from lmpg.gym.rollouts import GymSource
from lmpg.runs import checkpoint
from lmpg.runs.tracking import Tracker
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped, UserError
from lmpg.training import loop
from lmpg.training.online import Online
from lmpg.training.stop_request import StopRequest
from tests.support.agents import AGENT, FINISHED, agent, resumed, saved
from tests.support.planted import catches
from tests.support.programs import metrics, own_parts, run_here


@pytest.fixture
def flags(tmp_path):
    return {**AGENT, "run.output-dir": tmp_path / "run"}


def at_step(monkeypatch, number, act):
    """Let `act()` happen at the end of a step."""
    log = Tracker.log

    def acting(self, step, found):
        log(self, step, found)
        if step == number:
            act()

    monkeypatch.setattr(Tracker, "log", acting)


@catches("an interrupted run ends with exit code 0", "SIGHUP ends a run unsaved")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, None)]
)
def test_a_signal_ends_a_run_saved_and_the_exit_code_tells_which(flags, monkeypatch, number, code):
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
    with pytest.raises((SystemExit, KeyboardInterrupt)) as end:
        agent(flags)
    assert getattr(end.value, "code", None) == code
    folder = flags["run.output-dir"]
    assert json.loads((folder / "summary.json").read_text())["exit_reason"] == "interrupted"
    assert checkpoint.newest_step(folder / "checkpoints") == 2
    monkeypatch.undo()
    assert resumed(flags) == FINISHED


@catches("each rank looks for itself whether the last step is saved")
def test_whether_the_last_step_is_saved_is_asked_of_the_main_process_alone(flags, monkeypatch):
    asked, on_main = [], Processes.on_main

    def watched(self, function):
        asked.append(1)
        try:
            return on_main(self, function)
        finally:
            asked.pop()

    def newest(folder):
        assert asked
        return checkpoint.newest_step(folder)

    monkeypatch.setattr(Processes, "on_main", watched)
    seen = SimpleNamespace(**{**vars(checkpoint), "newest_step": newest})
    monkeypatch.setattr(loop, "checkpoint", seen)
    agent(flags)
    monkeypatch.undo()
    assert resumed(flags) == FINISHED


@catches("an iteration that a launcher's grace is too short for is killed unsaved, without a word")
@pytest.mark.parametrize("told", [False, True])
def test_who_runs_under_a_launcher_with_little_patience_is_told(monkeypatch, capsys, told):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    parent = SimpleNamespace(cmdline=lambda: ["torchrun", *["--shutdown-timeout=90"] * told])
    stop, stop_began = StopRequest(Processes(cpu=True)), time.monotonic()
    monkeypatch.setattr(psutil.Process, "parent", lambda self: parent)
    for later in (1.0, 41.0, 81.0):
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda later=later: stop_began + later)
            stop.requested()
    said = capsys.readouterr().out
    assert ("an iteration takes 40 s" in said) != told
    assert said.count("--shutdown-timeout 110 gives") == (not told)


def test_under_nohup_a_closed_terminal_is_nothing(flags, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert [line["step"] for line in metrics(agent(flags))] == FINISHED
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), KeyboardInterrupt()])
def test_whatever_fails_before_the_first_step_leaves_nothing(flags, monkeypatch, error, tmp_path):
    def failing(*_):
        raise error

    deep = {**flags, "run.output-dir": tmp_path / "a" / "b"}
    for name in ("evaluate", "collect"):
        with monkeypatch.context() as patch:
            patch.setattr(GymSource, name, failing)
            with pytest.raises(type(error)):
                agent(deep)
        assert not (tmp_path / "a").exists()
    (tmp_path / "a" / "b").mkdir(parents=True)  # a folder of the user's own stays
    with monkeypatch.context() as patch:
        patch.setattr(GymSource, "evaluate", failing)
        with pytest.raises(type(error)):
            agent(deep)
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert [line["step"] for line in metrics(agent(deep))] == FINISHED


@catches("a start that was killed blocks the next try")
def test_a_start_that_was_killed_is_begun_anew_even_with_other_settings(flags):
    folder = flags["run.output-dir"]
    begun = agent(flags)
    for name in ("final", "checkpoints"):
        shutil.rmtree(begun / name)
    for name in ("summary.json", "report.html"):
        (begun / name).unlink()
    for name in ("metrics.jsonl", "samples.jsonl"):
        (begun / name).write_text("")
    (folder / "checkpoints" / ".tmp-step_1-99").mkdir(parents=True)
    (folder / "config.yaml.tmp").write_text("half")
    agent({**flags, "run.seed": 3})
    assert [line["step"] for line in metrics(folder)] == FINISHED
    assert not list(folder.glob("*.tmp"))


def test_settings_of_ones_own_in_the_folder_are_never_overwritten(flags):
    folder = flags["run.output-dir"]
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {seed: 3}\n")
    for _ in range(2):
        with pytest.raises(UserError, match="holds another run"):
            agent(flags)
    assert (folder / "config.yaml").read_text() == "run: {seed: 3}\n"


def diverging(monkeypatch, number):
    """Let the weights be ruined by the end of the step before `number`."""
    iterate = Online.iterate

    def ruining(self, iteration):
        if iteration == number:
            for p in self.policy.parameters():
                p.data.fill_(torch.nan)
        return iterate(self, iteration)

    monkeypatch.setattr(Online, "iterate", ruining)


@catches("the checkpoint kept after NaN gradients is the ruined one")
@pytest.mark.parametrize("keep", [1, 2])
def test_after_divergence_the_last_good_checkpoint_is_kept_and_named(
    flags, monkeypatch, keep, capsys
):
    flags["run.keep-checkpoints"] = keep
    diverging(monkeypatch, 3)
    with pytest.raises(RunStopped, match="goes on from step 1, the last good checkpoint"):
        agent(flags)
    folder = flags["run.output-dir"]
    assert saved(folder) == ["diverged_step_2", "step_1"]
    monkeypatch.undo()
    capsys.readouterr()
    lower = {"update.learning-rate": 1e-5, "update.max-grad-norm": 0.1}
    assert resumed(flags, **lower, **{"algorithm.value-coef": 0.2}) == FINISHED
    said = capsys.readouterr().out
    assert "update.learning_rate is 1e-05 from here on, it was" in said
    assert "update.max_grad_norm is 0.1 from here on" in said
    assert "algorithm.value_coef is 0.2 from here on" in said
    assert "at step 1" in said
    assert saved(folder) == ["step_3", "step_4"][2 - keep :]


def test_divergence_at_once_goes_on_from_the_start(flags, monkeypatch):
    diverging(monkeypatch, 1)
    with pytest.raises(RunStopped, match="goes on from the start"):
        agent(flags)
    monkeypatch.undo()
    assert resumed(flags) == FINISHED


def test_a_coefficient_that_is_steered_may_not_be_set_on_resume(tmp_path):
    parts = own_parts(tmp_path / "parts")
    own = {"run.total-steps": 1, "algorithm.kl-target": 0.1, "run.output-dir": tmp_path / "run"}
    flags = {**parts, **own, "sampling.max-new-tokens": 4}
    run_here("ppo", flags)
    with pytest.raises(UserError, match=r"algorithm\.kl_coef = 0\.5, but the run in"):
        run_here("ppo", {**flags, "run.resume": True, "algorithm.kl-coef": 0.5})


@catches("a checkpoint half written to a full disk stays there")
def test_a_full_disk_is_told_and_the_last_checkpoint_kept(flags, monkeypatch):
    fill = checkpoint._fill

    def full(temporary, step, state):
        fill(temporary, step, state)
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_fill", full)
    with pytest.raises(RunStopped, match=r"No space left on device\. The last is of step 2"):
        agent(flags)
    assert saved(flags["run.output-dir"]) == ["step_1", "step_2"]
    monkeypatch.undo()
    assert resumed(flags) == FINISHED


def test_a_line_of_the_log_that_cannot_be_written_ends_the_run(flags, monkeypatch):
    def full(self, name, row):
        if row["step"] == 3:
            self.problem = "metrics.jsonl cannot be written: No space left on device"
        else:
            append(self, name, row)

    append = Tracker._append
    monkeypatch.setattr(Tracker, "_append", full)
    flags["run.save-every"] = 2
    with pytest.raises(RunStopped, match=r"metrics\.jsonl cannot be written"):
        agent(flags)
    monkeypatch.undo()
    assert resumed(flags) == FINISHED


@catches("a moved run is split over two folders")
def test_a_run_whose_folder_is_moved_ends_saved_in_the_new_place(flags, monkeypatch, tmp_path):
    here, there = flags["run.output-dir"], tmp_path / "there"
    flags["run.save-every"] = 0
    at_step(monkeypatch, 2, lambda: here.rename(there))
    with pytest.raises(RunStopped, match=f"was moved to {there}"):
        agent(flags)
    assert not here.exists()
    monkeypatch.undo()
    assert resumed({**flags, "run.output-dir": there}) == FINISHED


def test_a_run_whose_folder_is_deleted_ends_and_makes_no_new_one(flags, monkeypatch):
    folder = flags["run.output-dir"]
    flags["run.save-every"] = 0
    at_step(monkeypatch, 2, lambda: shutil.rmtree(folder))
    with pytest.raises(RunStopped, match="was deleted while the run went on"):
        agent(flags)
    assert not folder.exists()


@catches("a divergence in the very last step is taken for a result")
@pytest.mark.parametrize(("keep", "every"), [(1, 0), (2, 1)])
def test_a_last_step_that_ruins_the_weights_is_no_result(flags, monkeypatch, keep, every):
    iterate = Online.iterate

    def ruining(self, iteration):
        found = iterate(self, iteration)
        if iteration == FINISHED[-1]:
            next(iter(self.policy.parameters())).data.view(-1)[0] = torch.nan
        return found

    monkeypatch.setattr(Online, "iterate", ruining)
    flags |= {"run.keep-checkpoints": keep, "evaluation.every": every}
    with pytest.raises(RunStopped, match=r"step 4 has left weights .* from step 3, the last good"):
        agent(flags)
    folder = flags["run.output-dir"]
    assert not (folder / "final").exists()
    assert json.loads((folder / "summary.json").read_text())["exit_reason"].startswith("stopped")
    monkeypatch.undo()
    assert resumed(flags) == FINISHED
    assert (folder / "final").is_dir()


@catches("probabilities that are NaN choose a token beyond the vocabulary")
def test_weights_too_large_for_any_probability_are_told_from_a_result(tmp_path):
    parts = own_parts(tmp_path / "parts")
    flags = {**parts, "run.output-dir": tmp_path / "run", "update.learning-rate": 1e20}
    for steps, said in ((1, "gives NaN for the next token"), (2, "every gradient was inf or NaN")):
        with pytest.raises(RunStopped, match=said):
            run_here("reinforce", {**flags, "run.total-steps": steps, "run.resume": steps > 1})
        assert not (tmp_path / "run" / "final").exists()
