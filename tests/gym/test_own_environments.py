"""`lmpg.gym.train` with an environment's class, a factory or an instance, and in any thread."""

from __future__ import annotations

import functools
import threading

import gymnasium
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from lmpg.gym import evaluate, train
from lmpg.gym.environments.own import env_id_of
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
