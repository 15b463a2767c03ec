"""CPU threads: their number changes results, so a run keeps the one that it began with."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from lmpg.algorithms.ppo import PPO
from lmpg.gym import train
from lmpg.language.settings import LanguageSettings
from lmpg.runtime import machine, processes
from lmpg.runtime.machine import SMALL_MODEL, limit_threads
from lmpg.runtime.processes import Processes
from lmpg.settings.raw import defaults_of, merged, validated
from lmpg.settings.section import UserError
from lmpg.training.run import begin, thread_lines
from tests.support.planted import catches
from tests.support.programs import let_go, own_parts, run_here

AGENT = {
    "update": {"rollout_size": 64, "minibatch_size": 32, "schedule": "constant"},
    "evaluation": {"size": 2},
    "policy": {"hidden_sizes": (8,)},
    "env": {"num_envs": 2, "vectorization": "sync"},
}


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """A machine where torch would take three threads; as it was before after the test."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "OWN_THREADS", 3)
    limit_threads(3)
    yield
    let_go()
    limit_threads(before)


def begun(folder, **run):
    """The threads of a run that begins in `folder`, before its model is known."""
    given = {"run": {"output_dir": str(folder), **run}}
    settings = validated(LanguageSettings[PPO], merged(defaults_of(LanguageSettings[PPO]), given))
    made = Processes(cpu=True)
    opened = begin(settings, "ppo", made)
    return made, opened


def agent_run(folder, steps, **run):
    train(**AGENT, run={"output_dir": str(folder), "total_timesteps": steps, **run})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert config["run"]["torch_threads"] == summary["num_threads"] == torch.get_num_threads()
    return summary["num_threads"]


@pytest.mark.parametrize(("weights", "expected"), [(SMALL_MODEL - 1, 1), (SMALL_MODEL, 3)])
def test_small_models_have_one_thread_and_large_ones_torchs_choice(weights, expected):
    made = Processes(cpu=True)
    made.suit_threads(weights)
    assert made.num_threads == torch.get_num_threads() == expected


def test_the_setting_wins_over_the_environment_and_both_over_the_size(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")  # as OpenMP reads it: one number per level
    for name, setting, expected in (("a", 0, 2), ("b", 4, 4)):
        made, _ = begun(tmp_path / name, torch_threads=setting)
        made.suit_threads(10)
        assert made.num_threads == torch.get_num_threads() == expected
        said = thread_lines(made)[0]
        assert ("OMP_NUM_THREADS" in said) == (not setting)


@pytest.mark.parametrize("value", ["", "0", "many", "-1", "20000", "9" * 5000])
def test_a_value_that_openmp_cannot_follow_counts_as_none(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert machine.threads_by_environment(1024) == 0


@catches("a resumed run takes the number of threads of the machine that it goes on on")
def test_a_resumed_agent_has_the_threads_that_it_began_with(tmp_path, monkeypatch, capsys):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert agent_run(whole, 256) == agent_run(parted, 128) == 2
    assert "2 CPU threads per process: OMP_NUM_THREADS" in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert agent_run(parted, 256, resume=True) == 2
    out = capsys.readouterr().out
    assert "2 CPU threads per process: as the run began" in out
    assert "OMP_NUM_THREADS = 1 would change its results and is passed over" in out
    saved = [path / "final" / "policy.safetensors" for path in (whole, parted)]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_environments_and_tiny_models_are_trained_by_one_thread(tmp_path, capsys):
    assert agent_run(tmp_path / "agent", 64) == 1
    limit_threads(3)
    flags = {**own_parts(tmp_path), "run.total-steps": 1, "run.output-dir": tmp_path / "run"}
    folder = run_here("reinforce", flags)
    assert json.loads((folder / "summary.json").read_text())["num_threads"] == 1
    assert torch.get_num_threads() == 1
    assert capsys.readouterr().out.count("1 CPU thread per process: small models") == 2


def test_a_run_is_not_resumed_with_threads_that_its_settings_did_not_have(tmp_path):
    agent_run(tmp_path, 64, torch_threads=2)
    with pytest.raises(UserError, match=r"run\.torch_threads = 1, but the run in .* has 2"):
        agent_run(tmp_path, 128, torch_threads=1, resume=True)


def test_more_threads_than_cores_are_said(monkeypatch):
    monkeypatch.setattr("lmpg.training.run.num_cores", lambda: 2)
    made = Processes(cpu=True)
    made.fix_threads(2, "as the run began")
    assert len(thread_lines(made)) == 1
    made.fix_threads(4, "as the run began")
    assert thread_lines(made)[1].startswith("warning: 4 CPU threads on the 2 cores")
