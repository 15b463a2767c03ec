"""`lmpg.gym.train` with an environment's class, a factory or an instance, and in any thread."""

from __future__ import annotations

import functools
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from lmpg.algorithms.ppo import PPO
from lmpg.gym import evaluate, train
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.own import env_id_of
from lmpg.gym.environments.settings import EnvSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches

SMALL = {
    "update": {"rollout_size": 64, "minibatch_size": 32, "schedule": "constant"},
    "evaluation": {"size": 2},
    "policy": {"hidden_sizes": (8,)},
}


def heavy(length: float = 0.5) -> gymnasium.Env:
    env = CartPoleEnv()
    env.length = length
    return env


def policy_of(folder) -> bytes:
    return (folder / "final" / "policy.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("env", "env_id"),
    [
        (CartPoleEnv, "own/CartPoleEnv-v0"),
        (heavy, "own/heavy-v0"),
        (functools.partial(heavy, length=0.5), "own/heavy-v0"),
        (CartPoleEnv(), "own/CartPoleEnv-v0"),
        (gymnasium.make("CartPole-v1"), "own/CartPoleEnv-v0"),
    ],
    ids=["class", "function", "partial", "instance", "made"],
)
def test_a_class_a_function_and_an_instance_have_an_id(env, env_id):
    assert env_id_of(env) == env_id
    made = [gymnasium.make(env_id).unwrapped for _ in range(2)]
    assert all(isinstance(x, CartPoleEnv) and x is not env for x in made)
    assert made[0] is not made[1]


class Shorter(gymnasium.Wrapper):
    """A wrapper that gymnasium cannot make again."""


@catches("an instance is made anew by its id, without what was changed in it")
def test_an_instance_keeps_its_changes_and_its_wrappers():
    env = Shorter(gymnasium.make("CartPole-v1"))
    env.unwrapped.length = 5.0
    made = gymnasium.make(env_id_of(env))
    assert made.unwrapped is not env.unwrapped
    assert made.unwrapped.length == 5.0
    inner = made
    while not isinstance(inner, Shorter):
        inner = inner.env


def test_copies_of_an_instance_that_was_used_draw_differently_though_reset_forgets_the_seed():
    class Forgets(CartPoleEnv):
        def reset(self, *, seed=None, options=None):
            return super().reset()

    env = Forgets()
    env.reset()
    envs = make_envs(EnvSettings(id=env_id_of(env)), 2)
    first, second = envs.reset(seed=3)[0]
    assert not np.array_equal(first, second)


def test_an_instance_that_cannot_be_copied_is_made_anew_by_its_id_and_that_is_said(caplog):
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.lock = threading.Lock()
    assert isinstance(gymnasium.make(env_id_of(env)).unwrapped, CartPoleEnv)
    assert "what was changed in it since is not in the new one" in caplog.text


@pytest.mark.parametrize("algorithm", [PPO(), PPO, None, 5])
def test_an_algorithm_that_is_neither_name_nor_section_is_refused(algorithm):
    with pytest.raises(UserError, match="expected a name, as 'ppo', or a section"):
        train("CartPole-v1", algorithm)


def test_a_class_is_trained_resumed_and_evaluated_like_an_id(tmp_path):
    env = {"id": CartPoleEnv, "num_envs": 2}
    for folder, lengths in ((tmp_path / "whole", (256,)), (tmp_path / "parted", (128, 256))):
        for steps in lengths:
            run = {"output_dir": str(folder), "total_timesteps": steps, "resume": True}
            agent = train(env, **SMALL, run=run)
    assert policy_of(tmp_path / "whole") == policy_of(tmp_path / "parted")
    assert evaluate(agent, CartPoleEnv, 3).returns.tolist() == (
        evaluate(agent, heavy, 3, length=0.5).returns.tolist()
    )


@catches("signals are listened for in a thread that may not")
def test_agents_are_trained_in_any_thread_with_the_same_result(tmp_path):
    def trained(name: str) -> None:
        run = {"output_dir": str(tmp_path / name), "total_timesteps": 64}
        train("CartPole-v1", **SMALL, run=run)

    thread = threading.Thread(target=trained, args=("thread",))
    thread.start()
    thread.join()
    trained("main")
    assert policy_of(tmp_path / "thread") == policy_of(tmp_path / "main")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (7, "env = 7: expected an id, an environment's class"),
        (dict, r"env = <class 'dict'>: expected an id"),
        (gymnasium.make_vec("CartPole-v1", 2), "is a vector of environments; give a single one"),
        (lambda: "no environment", "own/lambda-v0 with .* cannot be made"),
    ],
    ids=["number", "class", "vector", "function"],
)
def test_what_is_no_environment_is_refused(env, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train({"id": env}, **SMALL, run={"output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_an_instance_that_cannot_be_copied_is_refused(tmp_path):
    env = CartPoleEnv()
    env.lock = threading.Lock()
    with pytest.raises(UserError, match=r"cannot be copied .*Give its class"):
        train(env, **SMALL, run={"output_dir": str(tmp_path / "run")})
