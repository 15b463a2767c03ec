"""Mistakes in an environment of one's own end in one line that names it."""

from __future__ import annotations

import logging
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from lmpg.gym import train
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.runner import Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.environments.spaces import Observations
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runtime.seeding import generator
from lmpg.settings import said_once
from lmpg.settings.section import RunStopped, UserError
from tests.support.planted import catches

BOX = spaces.Box(-1, 1, (3,), np.float32)
ZEROS = np.zeros(3, np.float32)
NAME = "LmpgMistaken-v0"


@pytest.fixture(autouse=True)
def _registered():
    gymnasium.register(NAME, Own)
    said_once._said.clear()
    yield
    gymnasium.registry.pop(NAME)


class Own(gymnasium.Env):
    """What it returns is given by name; an exception is raised instead."""

    def __init__(self, seen=BOX, acted=None, first=(ZEROS, {}), **parts) -> None:
        self.observation_space, self.action_space = seen, acted or spaces.Discrete(2)
        self.first, self.parts = first, parts

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        if isinstance(self.first, Exception):
            raise self.first
        return self.first

    def step(self, action):
        self.time += 1
        if isinstance(self.parts.get("whole"), BaseException):
            raise self.parts["whole"]
        usual = {"obs": ZEROS, "reward": 1.0, "terminated": self.time >= 9, "truncated": False}
        found = {**usual, "info": {}, **self.parts}
        return found.get("whole") or tuple(found[name] for name in (*usual, "info"))


def lived(num_envs=2, vectorization="sync", **kwargs) -> Runner:
    """A runner after forty steps in environments with these parts."""
    settings = EnvSettings(id=NAME, kwargs=kwargs, vectorization=vectorization)
    runner = Runner(make_envs(settings, num_envs), NAME, seed=0)
    policy = MLPPolicy(runner.observations.size, runner.actions.spec, PolicySettings(), True)
    policy.initialise(generator("policy"))
    runner.collect(policy, 40, generator("act"))
    return runner


@catches("what an environment returns is unpacked without a look")
@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"first": ZEROS}, r"reset\(\) returned an array of shape \(3,\); expected \(observation"),
        ({"first": None}, r"reset\(\) returned None"),
        ({"first": (ZEROS, None)}, r"reset\(\) returned None .* as info; expected a dict"),
        (
            {"first": (np.zeros(4), {})},
            r"observation of shape \(4,\); its observation_space is Box",
        ),
        ({"first": ([[1], [2, 3]], {})}, r"reset\(\) shows \[\[1\], \[2, 3\]\]"),
        ({"first": (None, {})}, "reset.. shows None"),
        ({"first": KeyError("door")}, r"reset\(\) raised KeyError: 'door' \(.*mistakes\.py:\d+\)"),
        ({"first": (ZEROS * np.nan, {})}, "it shows nan, which nothing can be learned from"),
        ({"whole": (ZEROS, 1.0, False, {})}, r"step\(\) returned 4 values; .* old API's done"),
        ({"whole": ZeroDivisionError("by 0")}, r"step\(\) raised ZeroDivisionError: by 0"),
        ({"whole": SystemExit(0)}, r"step\(\) raised SystemExit: 0"),
        ({"obs": np.zeros((3, 1))}, r"step\(\) shows observation of shape \(3, 1\)"),
        ({"obs": np.full(3, np.inf)}, "it shows inf"),
        ({"obs": np.array(["a", "b", "c"])}, r"step\(\) shows an array of shape \(3,\)"),
        ({"reward": np.zeros(2)}, r"step\(\) paid an array of shape \(2,\); expected one number"),
        ({"reward": None}, r"step\(\) paid None"),
        ({"reward": "1"}, r"step\(\) paid '1' \(str\)"),
        ({"reward": float("nan")}, "it pays nan"),
        ({"terminated": "no"}, r"step\(\) returned 'no' \(str\) as terminated; expected True"),
        ({"truncated": {}}, r"step\(\) returned \{\} \(dict\) as truncated"),
        ({"info": None}, r"step\(\) returned None \(NoneType\) as info; expected a dict"),
        ({"seen": spaces.Box(-1, 1, (0,))}, "hold no number"),
        ({"seen": spaces.Dict({})}, "hold no number"),
        ({"acted": spaces.Box(-1, 1, (0,), np.float32)}, "leave no choice"),
        ({"seen": spaces.Discrete(3), "first": (3, {})}, r"reset\(\) shows 3 as observation"),
        ({"seen": spaces.Discrete(3), "first": (-1, {})}, r"reset\(\) shows -1 as observation"),
        (
            {"seen": spaces.Discrete(3), "first": (np.array([1]), {})},
            r"reset\(\) shows array\(\[1\]",
        ),
        ({"seen": spaces.Dict({"a": BOX}), "first": ({"b": ZEROS}, {})}, "no 'a' in observation"),
        (
            {"seen": spaces.Tuple([BOX, BOX]), "first": ((ZEROS,), {})},
            r"shows 1 values as observation",
        ),
        ({"seen": [BOX]}, r"cannot be made|its observations are"),
    ],
    ids=str,
)
def test_a_mistake_is_named_in_one_line(kwargs, said):
    with pytest.raises(UserError, match=said) as caught:
        lived(**kwargs)
    assert f"env.id = {NAME}" in str(caught.value)
    assert "\n" not in str(caught.value)


class NoReset(Own):
    reset = gymnasium.Env.reset


class NoStep(Own):
    step = gymnasium.Env.step


class OldReset(Own):
    def reset(self, seed=None):
        return super().reset(seed=seed)


class Broken(Own):
    def __init__(self) -> None:
        raise FileNotFoundError("map.txt")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (NoReset, "NoReset has no reset; expected reset"),
        (NoStep, "NoStep has no step; expected one that returns"),
        (OldReset, "OldReset.reset takes no seed or no options"),
        (Broken, "cannot be made: FileNotFoundError: map.txt"),
    ],
)
def test_a_method_that_is_missing_is_named(kind, said):
    gymnasium.registry.pop(NAME)
    gymnasium.register(NAME, kind)
    with pytest.raises(UserError, match=said):
        lived()


def test_a_module_that_breaks_on_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "breaks_on_import.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"cannot be imported \(ZeroDivisionError: division by zero"
    ):
        make_envs(EnvSettings(id="breaks_on_import:X-v0"), 1)


def test_an_environment_may_lie_where_the_command_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [x for x in sys.path if x])  # as a script has it
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_here.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('MineHere-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    assert make_envs(EnvSettings(id="mine_here:MineHere-v0"), 2).num_envs == 2


@catches("a reward of one element is refused")
@pytest.mark.parametrize("reward", [np.array([2.0]), np.float32(2), 2, np.array(2), True])
def test_a_reward_of_one_element_is_a_number(reward):
    total = 9 * float(np.sum(reward))
    assert lived(reward=reward).metrics()["episode/return_mean"] == total


@pytest.mark.parametrize(
    ("kwargs", "size"),
    [
        ({"obs": np.zeros(3)}, 3),
        ({"obs": np.zeros(3, np.int64)}, 3),
        ({"obs": [0.0, 0.0, 0.0]}, 3),
        ({"terminated": np.bool_(True)}, 3),
        ({"terminated": np.array([1]), "truncated": 0}, 3),
        ({"seen": spaces.Discrete(5), "first": (np.array(2), {}), "obs": np.int32(4)}, 5),
    ],
    ids=str,
)
def test_other_types_of_the_same_numbers_are_taken(kwargs, size):
    assert lived(**kwargs).observations.size == size


def test_bounds_that_do_not_hold_are_said_once(caplog):
    for number in (7.0, 8.0):
        lived(first=(np.full(3, -number, np.float32), {}), obs=np.full(3, number, np.float32))
    assert len(caplog.records) == 1
    assert "outside of its observation_space" in caplog.text


@catches("a choice among n builds an n × n matrix")
def test_a_choice_among_a_million_is_one_row():
    space = spaces.Discrete(1_000_000, start=1)
    found = Observations.of(space, "x").features(np.array([7, 1]))
    assert found.shape == (2, 1_000_000)
    assert found[0, 6] == found[1, 0] == found.sum() / 2 == 1


@pytest.mark.parametrize(
    ("low", "high", "told"), [(5, 35, True), (-9, -4, True), (-1, 1, False), (0, 9, False)]
)
def test_actions_that_are_all_cut_at_a_bound_are_said_once(low, high, told, caplog):
    for _ in range(2):
        lived(acted=spaces.Box(low, high, (2,), np.float32))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(lines) == told
    assert all("cut to one bound" in x and "--policy.squash True" in x for x in lines)


def test_actions_without_an_upper_bound_are_not_advised_to_be_squashed(caplog):
    lived(acted=spaces.Box(5, np.inf, (2,), np.float32))
    (line,) = [r.getMessage() for r in caplog.records]
    assert "cut to one bound" in line
    assert "squash" not in line


def test_what_goes_wrong_in_close_costs_nothing(caplog):
    class Unclosable(Own):
        def close(self):
            raise RuntimeError("no window")

    gymnasium.registry.pop(NAME)
    gymnasium.register(NAME, Unclosable)
    runner = lived()
    runner.close()
    assert f"env.id = {NAME}: close() raised RuntimeError: no window" in caplog.text


def test_a_reset_that_forgets_the_seed_is_seeded_all_the_same():
    """A generator that nobody seeds would be another one in every run."""

    class Forgets(Own):
        def reset(self, *, seed=None, options=None):
            return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    gymnasium.registry.pop(NAME)
    gymnasium.register(NAME, Forgets)
    seen = [make_envs(EnvSettings(id=NAME), 2).reset(seed=3)[0].copy() for _ in range(2)]
    np.testing.assert_array_equal(*seen)


def test_a_mistake_in_the_middle_of_a_run_leaves_what_was_learned(tmp_path):
    class Late(Own):
        def step(self, action):
            Late.steps += 1
            found = super().step(action)
            return found if Late.steps < 150 else found[:4]

    gymnasium.registry.pop(NAME)
    gymnasium.register(NAME, Late)
    Late.steps = 0
    small = {"update": {"rollout_size": 64, "minibatch_size": 32}, "evaluation": {"size": 1}}
    env = {"id": NAME, "num_envs": 2}
    run = {"output_dir": str(tmp_path), "total_timesteps": 512}
    with pytest.raises(RunStopped, match=r"step\(\) returned 4 values.*, after 1\d\d steps"):
        train(env, **small, run=run)
    assert (tmp_path / "checkpoints" / "step_2").is_dir()
