"""What surrounds a gym run: normalisation, stop rules, agents from disk, the Python interface."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save

from lmpg.cli.main import train_agent
from lmpg.gym import evaluate, load, record, train
from lmpg.gym.environments.agent import Agent, load_agent
from lmpg.gym.environments.normalisation import ColumnMoments, Normaliser
from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.settings.section import UserError
from tests.support.planted import catches

SMALL = {
    "update": {"rollout_size": 64, "minibatch_size": 32, "epochs": 2, "schedule": "constant"},
    "evaluation": {"size": 4},
    "policy": {"hidden_sizes": (8,)},
}
ENV = {"normalise_observations": True, "normalise_rewards": True, "num_envs": 2}


@catches("the spread within the rows of a step left out of running statistics")
def test_moments_are_those_of_all_rows_however_they_came():
    rows = np.random.default_rng(0).normal(3.0, [0.1, 50.0], (500, 2))
    moments = ColumnMoments.of_size(2)
    for part in np.split(rows, [1, 1, 40, 300]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.scale, rows.std(0), rtol=2e-4)


def test_rewards_are_scaled_by_the_spread_of_discounted_returns_and_not_shifted():
    """Two episodes by hand: γ = 0.5, rewards 1, 2 | 3."""
    normaliser = Normaliser.for_run(False, True, size=1, num_envs=1, gamma=0.5)
    yes, no = np.array([True]), np.array([False])
    paid = [
        normaliser.scaled_rewards(np.array([reward]), yes, ended)
        for reward, ended in ((1.0, no), (2.0, yes), (3.0, no))
    ]
    returns = np.array([1.0, 2.5, 3.0])
    assert normaliser.rewards.mean[0] == pytest.approx(returns.mean(), rel=1e-3)
    assert paid[-1][0] == pytest.approx(3 / returns.std(), rel=1e-3)


def test_a_resetting_step_is_neither_seen_nor_paid():
    normaliser = Normaliser.for_run(True, True, size=1, num_envs=2, gamma=0.9)
    chosen = np.array([True, False])
    normaliser.update_and_normalise(np.array([[1.0], [1000.0]], dtype=np.float32), chosen)
    normaliser.scaled_rewards(np.array([1.0, 0.0]), chosen, np.array([False, False]))
    assert normaliser.observations.count == normaliser.rewards.count == pytest.approx(1.0001)
    assert normaliser.returns_B.tolist() == [1, 0]


def test_statistics_are_frozen_in_evaluation_and_come_back_from_disk(tmp_path):
    agent = train(**SMALL, env=ENV, run={"total_timesteps": 256, "output_dir": str(tmp_path)})
    assert agent.normaliser.observations.count == pytest.approx(256, abs=0.01)
    before = agent.normaliser.observations.mean.copy()
    first, second = (evaluate(agent, "CartPole-v1", 5).returns for _ in range(2))
    assert first.tolist() == second.tolist()
    np.testing.assert_array_equal(agent.normaliser.observations.mean, before)
    np.testing.assert_array_equal(load(tmp_path / "final").normaliser.observations.mean, before)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["evaluation"].startswith("4 episodes of deterministic actions")


@pytest.mark.parametrize(
    ("rule", "iterations"),
    [({"max_iterations": 3}, 3), ({"max_episodes": 1}, 2), ({"target_return": 5.0}, None)],
)
def test_a_run_ends_where_its_own_limit_says(rule, iterations, tmp_path):
    train(**SMALL, run={"total_timesteps": 20_000, "output_dir": str(tmp_path), **rule})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    if iterations is None:  # a hundred episodes of at least 8 steps each
        assert 100 * 8 < json.loads(lines[-1])["num_steps"] < 5000
    else:
        assert len(lines) == iterations


def test_sampled_evaluation_is_not_deterministic_evaluation(tmp_path):
    agent = train(**SMALL, run={"total_timesteps": 64, "output_dir": str(tmp_path)})
    likeliest = evaluate(agent, "CartPole-v1", 20).returns
    sampled = [evaluate(agent, "CartPole-v1", 20, False, seed).returns for seed in (1, 1, 2)]
    assert sampled[0].tolist() == sampled[1].tolist() != sampled[2].tolist()
    assert sampled[0].mean() > 1.5 * likeliest.mean()  # it falls over at once, always to one side


def test_keyword_arguments_make_the_settings_that_flags_make(tmp_path):
    path, short = tmp_path / "by_flags", {"total_timesteps": 64, "output_dir": tmp_path / "run"}
    agent = train(env={"num_envs": np.int64(4)}, policy={"hidden_sizes": 8}, run=short)
    flags = "--env.num-envs 4 --policy.hidden-sizes 8 --run.total-timesteps 64"
    train_agent([*flags.split(), "--run.output-dir", str(path)])
    assert (tmp_path / "run" / "config.yaml").read_bytes() == (path / "config.yaml").read_bytes()
    for name, tensor in load(path).policy.trainable_state().items():
        assert torch.equal(tensor, agent.policy.trainable_state()[name])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"update": {"epoch": 1}}, "update.epoch = 1; did you mean update.epochs"),
        ({"update": {"epochs": 0}}, "update.epochs = 0: expected greater than or equal to 1"),
        ({"run": 3}, "run = 3, expected a section with keys such as run.output_dir"),
        ({"algorithm": "pop"}, "algorithm.name = 'pop': expected one of ppo, "),
        ({"algorithm": {"name": "trpo", "clip": 1}}, "unknown setting algorithm.clip = 1"),
        ({"env": {"num_envs": 3}}, "is not a multiple of env.num_envs = 3"),
    ],
)
def test_bad_keyword_arguments_are_refused_by_name(given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        train(**given)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("policy.safetensors", b"version https://git-lfs.github.com/spec/v1"),
        ("policy.safetensors", None),
        ("policy.safetensors", save({"weight": torch.zeros(1)})),
        ("policy.json", b'{"num_features": 4, "act'),
        ("policy.json", b"[]"),
        ("policy.json", b'{"num_features": "four"}'),
        ("policy.json", b"\xff\xfe"),
        ("normalisation.json", b"{}"),
        ("normalisation.json", b'{"mean": [1], "var": [1], "count": 1}'),
        ("normalisation.json", b'{"mean": "x", "var": [1], "count": 1}'),
    ],
)
def test_an_agent_whose_files_are_damaged_is_refused_by_the_file(name, content, tmp_path):
    policy = MLPPolicy(2, ActionSpec("discrete", 2), PolicySettings(), critic=False)
    Agent(policy, Normaliser(ColumnMoments.of_size(2))).save(tmp_path)
    assert load(tmp_path).normaliser.observations.mean.shape == (2,)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged, or not of this agent .*copy the"):
        load(tmp_path)


def test_a_folder_without_an_agent_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no policy\.json"):
        load_agent(tmp_path)


def test_a_film_that_cannot_be_made_is_refused(tmp_path):
    agent = train(**SMALL, run={"total_timesteps": 64, "output_dir": str(tmp_path / "run")})
    for env, path, said in (
        ("CartPole-v1", "film.gif", r"film\.gif: videos are written as \.mp4"),
        ("CartPol-v1", "film.mp4", r"did you mean CartPole-v1"),
        ("lmpg/Corridor-v0", "film.mp4", r"cannot be rendered as rgb_array"),
    ):
        with pytest.raises(UserError, match=said):
            record(agent, env, tmp_path / path)


def test_an_episode_is_recorded(tmp_path):
    pytest.importorskip("moviepy")
    agent = train(**SMALL, run={"total_timesteps": 64, "output_dir": str(tmp_path / "run")})
    earned = record(agent, "CartPole-v1", tmp_path / "films" / "episode.mp4", seed=3)
    assert earned > 5
    assert (tmp_path / "films" / "episode.mp4").stat().st_size > 1000
