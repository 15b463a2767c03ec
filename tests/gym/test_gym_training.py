"""Whole gym runs: presets, and what PPO learns."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from lmpg.algorithms.ppo import PPO
from lmpg.cli.main import agent_settings, train_agent
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.mlp_policy import load_mlp_policy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.gym.rollouts import make_source, num_iterations
from lmpg.gym.settings import GymSettings, file_stem
from lmpg.runs.settings import EvaluationSettings, GymRunSettings
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater
from tests.support.planted import catches
from tests.support.programs import let_go

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "lmpg" / "presets" / "gym"


def settings(*argv: str) -> GymSettings:
    return agent_settings(argv)[0]


def test_the_preset_of_an_environment_is_picked_by_its_id():
    assert settings().algorithm.gamma == 0.98
    assert settings("--env.id", "Pendulum-v1").algorithm.gamma == 0.95
    assert settings("--env.id", "Acrobot-v1").algorithm.gamma == 0.99
    assert file_stem("phys2d/CartPole-v1") == file_stem("mine:CartPole-v0") == "cartpole"


def test_flags_win_over_the_preset_and_a_config_file_replaces_it(tmp_path):
    assert settings("--algorithm.gamma", "0.5").algorithm.gamma == 0.5
    config = tmp_path / "mine.yaml"
    config.write_text("env: {id: CartPole-v1}\nupdate: {epochs: 3}\n")
    found = settings("--config", str(config), "--update.learning-rate", "0.1")
    assert (found.update.epochs, found.update.learning_rate) == (3, 0.1)
    assert found.algorithm.gamma == 0.99


def test_presets_serve_other_algorithms_and_say_what_they_are():
    found, note = agent_settings(["--algorithm.name", "reinforce", "--env.id", "Pendulum-v1"])
    assert found.algorithm.gamma == 0.95
    assert "ppo_pendulum.yaml" in note


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_is_valid(path):
    assert settings("--config", str(path)).run.total_timesteps >= 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--algorithm.name", "grpo"], "algorithm.name"),
        (["--algorithm.kl-coef", "0.1"], "algorithm.kl_coef"),
    ],
)
def test_what_needs_a_language_model_is_refused(argv, said):
    with pytest.raises(UserError, match=said):
        settings(*argv)


def test_without_ratios_a_preset_of_another_method_is_gone_over_once():
    pendulum = ["--env.id", "Pendulum-v1"]
    assert settings(*pendulum).update.epochs > 1
    for name in ("a2c", "reinforce"):
        assert settings("--algorithm.name", name, *pendulum).update.epochs == 1
        assert settings("--algorithm.name", name, *pendulum, "--update.epochs", "2").update.epochs


def test_arguments_of_an_environment_that_are_no_mapping_are_refused(tmp_path):
    for word in ("gravity", "{gravity: ["):
        with pytest.raises(UserError, match=r"env\.kwargs = .* expected names with values"):
            settings("--env.kwargs", word)
    config = tmp_path / "mine.yaml"
    config.write_text("env:\nalgorithm:\n  name: a2c\n")
    assert settings("--config", str(config)).env.id == "CartPole-v1"


def test_help_names_the_methods(capsys):
    with pytest.raises(SystemExit):
        settings("--algorithm.name", "trpo", "--help", "algorithm")
    said = " ".join(capsys.readouterr().out.split())
    assert "--algorithm.name NAME picks the method, one of ppo" in said
    assert "those of trpo" in said


def test_a_method_that_the_environment_refuses_leaves_no_folder(tmp_path):
    flags = ["--algorithm.name", "qac", "--env.id", "Pendulum-v1"]
    with pytest.raises(UserError, match=r"one critic per action.*continuous"):
        train_agent([*flags, "--run.output-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


class Cycle(gymnasium.Env):
    """Four states in a ring, reward 1 always; the time limit is the wrapper's."""

    observation_space = gymnasium.spaces.Discrete(4)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        self.state = (self.state + 1) % 4
        return self.state, 1.0, False, False, {}


def learn(env: EnvSettings, update: UpdateSettings, algorithm: PPO, run: GymRunSettings):
    source = make_source(env, PolicySettings(), algorithm, update, EvaluationSettings(size=20), run)
    total_steps = num_iterations(run, update)
    updater = Updater(
        source.policy, update, total_steps, run.seed, Processes(cpu=True), single_steps=True
    )
    for step in range(1, total_steps + 1):
        rollout = source.collect(step).rollout
        updater.update(algorithm, rollout, algorithm.assign_credit(rollout), step)
    return source


@catches("a time limit treated as the end lowers the values of a whole run")
@pytest.mark.slow
def test_a_time_limit_does_not_lower_the_value():  # G3
    gymnasium.register("LmpgCycle-v0", Cycle, max_episode_steps=8)
    try:
        source = learn(
            EnvSettings(id="LmpgCycle-v0", num_envs=4),
            UpdateSettings(
                rollout_size=128, minibatch_size=128, microbatch_size=128, epochs=10,
                learning_rate=0.02, schedule="linear", max_grad_norm=100,
            ),
            PPO(gamma=0.98, lam=0.95, kl_coef=0, value_clip=None),
            GymRunSettings(total_timesteps=128 * 100),
        )  # fmt: skip
    finally:
        del gymnasium.registry["LmpgCycle-v0"]
    values = source.policy.values(torch.eye(4))
    assert values.tolist() == pytest.approx([50] * 4, abs=1)


@pytest.mark.slow
def test_ppo_balances_cartpole(tmp_path):
    train_agent(["--run.output-dir", str(tmp_path / "run"), "--run.seed", "11"])
    let_go()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["before"]["return_mean"] < 100
    assert summary["after"]["return_mean"] == 500
    assert summary["num_steps"] == 100_000
    assert "deterministic" in summary["evaluation"]
    tilted = np.array([[0, 0, 0.1, 0.5], [0, 0, -0.1, -0.5]], dtype=np.float32)
    assert load_mlp_policy(tmp_path / "run" / "final").act(tilted, None).tolist() == [1, 0]
