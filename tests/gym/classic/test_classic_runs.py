"""Whole runs of the textbook's methods: chosen by name, resumed bit for bit, exact in length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmpg.algorithms import ALGORITHMS, algorithm_name
from lmpg.cli.main import agent_settings, train_agent
from lmpg.gym.classic import METHODS
from lmpg.gym.networks.mlp_policy import load_mlp_policy
from lmpg.gym.settings import fitting, gym_settings_class
from lmpg.settings.section import RunStopped, UserError
from tests.support.planted import catches
from tests.support.programs import bytes_of, let_go, metrics, weights, words

SHORT = {
    "env.num-envs": 1, "policy.hidden-sizes": 8, "update.rollout-size": 64, "evaluation.size": 2,
    "run.save-every": 2,
}  # fmt: skip


def settings(*argv: str):
    return agent_settings(argv)[0]


def run(folder: Path, method: str, **flags) -> Path:
    given = SHORT | {"algorithm.name": method, "run.output-dir": folder} | flags
    try:
        train_agent(words(given))
    finally:
        let_go()
    return folder


def test_methods_and_algorithms_are_chosen_by_names_of_their_own():
    assert not METHODS.keys() & ALGORITHMS.keys()
    for name, method in METHODS.items():
        assert algorithm_name(method) == name
        assert type(settings("--algorithm.name", name).algorithm) is method
    with pytest.raises(UserError, match=r"expected one of ppo.*trpo"):
        settings("--algorithm.name", "topr")


def test_a_method_takes_from_a_preset_what_it_has():
    written_for_ppo = {"env": {"num_envs": 8}, "algorithm": {"gamma": 0.9, "clip": 0.1}}
    found = fitting(gym_settings_class("trpo"), {**written_for_ppo, "update": {"epochs": 3}})
    assert found == {"env": {"num_envs": 8}, "algorithm": {"gamma": 0.9}, "update": {}}
    assert settings("--algorithm.name", "td_lambda").env.num_envs == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--env.num-envs", "4"], r"env.num_envs = 4.*td_lambda.*Set env.num_envs to 1"),
        (["--update.epochs", "4"], "unknown flag --update.epochs"),
    ],
)
def test_settings_without_effect_are_refused(argv, said):
    with pytest.raises(UserError, match=said):
        settings("--algorithm.name", "td_lambda", *argv)


@catches("traces and moments of a textbook method not in the checkpoint")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_resumed_equals_one_that_was_not(method, tmp_path):
    whole = run(tmp_path / "whole", method, **{"run.total-timesteps": 350})
    parts = run(tmp_path / "parts", method, **{"run.total-timesteps": 192})
    run(parts, method, **{"run.total-timesteps": 350, "run.resume": True})
    assert metrics(parts) == metrics(whole)
    assert metrics(whole)[-1]["num_steps"] == 350
    a, b = (load_mlp_policy(x / "final").trainable_state() for x in (whole, parts))
    assert bytes_of(a) == bytes_of(b)
    summary = json.loads((parts / "summary.json").read_text())
    assert summary["exit_reason"] == "finished"
    assert summary["num_steps"] == 350
    assert (parts / "report.html").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_run(method, tmp_path):
    flags = {"run.total-timesteps": 130, "env.id": "Acrobot-v1", "run.seed": 3}
    one, other = (run(tmp_path / x, method, **flags) for x in "ab")
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "qac"])
def test_continuous_actions_are_learned_too(method, tmp_path):
    flags = {"run.total-timesteps": 260, "env.id": "Pendulum-v1"}
    found = run(tmp_path / "run", method, **flags)
    assert len(metrics(found)) == 5


def test_a_run_whose_weights_are_lost_stops_with_those_of_before(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RunStopped, match=r"inf or NaN.*smaller step sizes"):
        run(folder, "td_actor_critic", **{"algorithm.critic-step-size": 1e30})
    assert all(x.isfinite().all() for x in weights(folder).values())
    assert json.loads((folder / "summary.json").read_text())["exit_reason"].startswith("stopped")
