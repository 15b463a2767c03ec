"""Gym runs are exact: in length, from one seed to the same run, and over an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmpg.cli.main import agent_settings, train_agent
from lmpg.gym.classic import METHODS
from lmpg.runs import checkpoint
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import bytes_of, let_go, metrics, words

SHARED = {
    "ppo": {"update.epochs": 2, "update.minibatch-size": 32},
    "ppo, adaptive penalty": {
        "algorithm.name": "ppo", "update.epochs": 3, "algorithm.clip": "none",
        "algorithm.penalty-coef": 0.1, "algorithm.penalty-target": 1e-5,
    },
    "a2c": {"update.epochs": 1},
    "reinforce": {"update.epochs": 1, "algorithm.baseline": "ema", "algorithm.gamma-t": "True"},
    "off_policy": {"update.epochs": 2},
}  # fmt: skip
KINDS = SHARED | {name: {} for name in METHODS}
NORMALISED = {"env.normalise-observations": "True", "env.normalise-rewards": "True"}


def incremental(name: str) -> bool:
    return getattr(METHODS.get(name), "incremental", False)


def run(folder: Path, name: str, **flags) -> Path:
    shared = {"update.minibatch-size": 64, "update.microbatch-size": 64} if name in SHARED else {}
    given = shared | {
        "algorithm.name": name, "env.id": "Acrobot-v1",
        "env.num-envs": 1 if incremental(name) else 4, "policy.hidden-sizes": 8,
        "update.rollout-size": 64, "evaluation.size": 1, "run.output-dir": folder,
        "env.kwargs": "{max_episode_steps: 45}",
    }  # fmt: skip
    try:
        train_agent(words(given | KINDS[name] | flags))
    finally:
        let_go()
    return folder


def state(folder: Path) -> object:
    """Everything that would be needed to go on, to the last bit."""
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    kept = {k: v for k, v in newest[1].items() if k != "tracker"}
    kept["progress"] = {k: v for k, v in kept["progress"].items() if k != "seconds"}
    return bytes_of(kept)


@catches("the running return behind scaled rewards, or an actor's trace, not in the checkpoint")
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_an_interrupted_run_with_its_statistics_goes_on_bit_for_bit(name, tmp_path):
    flags = NORMALISED | ({"update.schedule": "constant"} if name in SHARED else {})
    whole = run(tmp_path / "whole", name, **flags, **{"run.total-timesteps": 320})
    parts = run(tmp_path / "parts", name, **flags, **{"run.total-timesteps": 128})
    run(parts, name, **flags, **{"run.total-timesteps": 320, "run.resume": True})
    assert metrics(parts) == metrics(whole)
    assert state(parts) == state(whole)


@catches("a rollout before the last leaves the last one nothing")
@pytest.mark.parametrize("total", [63, 64, 65, 66, 129, 191])
def test_a_run_has_exactly_the_steps_that_were_asked_for(total, tmp_path):
    for name, env in (("a2c", "CartPole-v1"), ("trpo", "CartPole-v1"), ("a2c", "Acrobot-v1")):
        flags = {
            "env.id": env,
            "env.kwargs": "{}",
            "env.num-envs": 16,
            "run.total-timesteps": total,
        }
        folder = run(tmp_path / f"{name}-{env}", name, **flags)
        assert [line["num_steps"] for line in metrics(folder)][-1] == total


@pytest.mark.parametrize("name", ["ppo", "trpo"])
def test_environments_that_would_not_all_step_equally_often_are_refused(name):
    argv = ["--algorithm.name", name, "--env.num-envs", "3", "--update.rollout-size", "512"]
    with pytest.raises(UserError, match=r"512 is not a multiple of env.num_envs = 3"):
        agent_settings(argv)
