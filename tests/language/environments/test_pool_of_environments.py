"""Environments in worker processes and in the trainer's: each row fails alone, counted and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmpg.language.environments.pool import EnvironmentPool
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.environments.text_episodes import checked_step, serving
from lmpg.language.rewards.worker import load
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import module_at

CODE = """
import asyncio, os, sys, threading, time

CHAT = [{"role": "user", "content": "Guess."}]
ODD_STEPS = {
    "no tuple": "higher",
    "too few": ("higher", 1.0, False, {}),
    "number": (3, 1.0, False, False, {}),
    "nothing": (None, 1.0, False, False, {}),
    "nan": ("x", float("nan"), False, False, {}),
    "text reward": ("x", "1.0", False, False, {}),
    "no flag": ("x", 1.0, 0, False, {}),
    "no info": ("x", 1.0, False, False, None),
    "endless": ("x" * (1 << 21), 1.0, False, False, {}),
    "odd chat": ([{"content": "no role"}], 1.0, False, False, {}),
    "image": ([{"role": "user", "content": [{"type": "image"}]}], 1.0, False, False, {}),
}

class Count:
    made = 0

    def __init__(self, until=3):
        self.until, self.count = until, 0

    def reset(self, *, seed, options):
        self.seed = seed
        if options.get("fault") == "reset":
            raise ValueError("no such game")
        if options.get("fault") == "own prompt":
            return None, {}
        return f"seed {seed} {options.get('name')}", {"state": 0, "odd": object()}

    def step(self, action):
        if action == "raises":
            raise RuntimeError("it broke")
        if action == "exits":
            sys.exit(1)
        if action == "dies":
            os._exit(3)
        if action == "hangs":
            time.sleep(60)
        if action == "floods":
            print("x" * 100_000)
        if action in ODD_STEPS:
            return ODD_STEPS[action]
        self.count += 1
        ended = self.count >= self.until
        return f"{self.seed}: {self.count} {action}", self.count / 2, ended, False, {}

class Forgetful(Count):
    def step(self, action):
        observation, *rest = super().step(action)
        return f"{observation} {time.perf_counter_ns()}", *rest

class Later(Count):
    async def reset(self, *, seed, options):
        return super().reset(seed=seed, options=options)

    async def step(self, action):
        await asyncio.sleep(60 if action == "waits" else 0.05)
        return super().step(action)

class Halting:
    def reset(self, *, seed, options):
        return "", {}

class Old(Count):
    def reset(self):
        return "", {}

class Unmade:
    def __init__(self):
        raise OSError("no such server")
    reset = step = print

def maker(until):
    return Count(until)
"""
FAULTS = {  # what a row does, and what is said of it
    "raises": "step raised RuntimeError: it broke (mine.py, line 35)",
    "exits": "step raised SystemExit: 1 (mine.py, line 37)",
    "no tuple": "step returned a str, expected (observation, reward, terminated, truncated, info)",
    "too few": "step returned 4 values, expected (observation, reward, ",
    "number": "step returned a int as observation, expected text, or chat messages such as",
    "nothing": "step returned a NoneType as observation",
    "nan": "step returned the reward nan, expected a finite number",
    "text reward": "step returned a str as reward, expected a number",
    "no flag": "step returned a int as terminated, expected True or False",
    "no info": "step returned a NoneType as info, expected a dict",
    "endless": "step returned an observation of 2097152 characters, expected at most 1048576",
    "odd chat": "its observation, message 1 has 'content' and no role that is text",
    "image": "its content is a list that holds a part of type 'image', expected text",
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture(params=["worker", "trainer"])
def pool(request, mine):
    """Makes a pool of one of the environments in CODE, in a worker or in this process."""
    made: list[EnvironmentPool] = []
    module = module_at(mine)

    def make(name: str, **settings) -> EnvironmentPool:
        path, given = f"{mine}:{name}", {}
        if request.param == "trainer":
            path = f"memory:{name}"
            given = {path: getattr(module, name)}
        made.append(EnvironmentPool(EnvironmentSettings(path=path, **settings), given))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_rows_begin_and_step_together_each_with_an_episode_of_its_own(pool):
    games = pool("Count")
    first = games.reset([{"name": "a"}, {"name": "b"}, {}], [5, 6, 7])
    assert [x.observation for x in first] == ["seed 5 a", "seed 6 b", "seed 7 None"]
    assert first[0].info == {"state": 0, "odd": "a object"}
    second = games.step({0: "x", 2: "y"})
    assert {k: (x.observation, x.reward, x.is_last) for k, x in second.items()} == {
        0: ("5: 1 x", 0.5, False),
        2: ("7: 1 y", 0.5, False),
    }
    for _ in range(2):
        last = games.step({0: "x"})
    assert (last[0].reward, last[0].terminated, last[0].is_last) == (1.5, True, True)
    again = games.reset([{"name": "c"}], [8])
    assert [x.observation for x in again] == ["seed 8 c"]
    assert games.step({0: "x"})[0].observation == "8: 1 x"


@catches("a row that failed takes those beside it along", "a failure that is not said")
def test_every_fault_costs_its_row_alone_and_is_said_once(pool, caplog):
    games = pool("Count", timeout=5)
    rows = dict(enumerate(FAULTS))
    well = len(rows)
    games.reset([{}] * (well + 1), list(range(well + 1)))
    for _ in range(2):
        outcomes = games.step({**rows, well: "fine"})
        for i, fault in rows.items():
            assert outcomes[i].error, fault
            assert FAULTS[fault] in outcomes[i].error
            assert outcomes[i].is_last
        assert outcomes[well].error is None
    assert outcomes[well].observation == f"{well}: 2 fine"
    assert caplog.text.count("it broke") == 1
    assert caplog.text.count("no more is said of it") == 1


def test_a_reset_that_fails_or_has_no_prompt_costs_its_row(pool):
    games = pool("Count")
    rows = [{"fault": "reset"}, {"fault": "own prompt"}, {"fault": "own prompt", "prompt": "Hi"}]
    first = games.reset([*rows, {}], [1, 2, 3, 4])
    assert first[0].error == "reset raised ValueError: no such game (mine.py, line 28)"
    assert first[1].error == "reset gave no observation, and the row has no prompt"
    assert [x.observation for x in first[2:]] == ["Hi", "seed 4 None"]
    assert games.step({0: "x", 3: "x"})[0].error == first[0].error


@pytest.mark.parametrize("ends", [(True, False), (False, True)])
def test_an_episode_may_end_without_a_last_observation(ends):
    assert checked_step((None, 1, *ends, {}))["observation"] == ""
    with pytest.raises(TypeError, match="a NoneType as observation"):
        checked_step((None, 1, False, False, {}))


def test_async_steps_of_all_rows_go_on_at_the_same_time(pool, monkeypatch):
    games = pool("Later", timeout=0.5)
    games.reset([{}] * 40, list(range(40)))
    outcomes = games.step(dict.fromkeys(range(40), "x") | {3: "waits", 4: "raises"})
    assert outcomes[3].error == "step gave no reply within environment.timeout of 0.5 s"
    assert "it broke" in outcomes[4].error
    assert [i for i, x in outcomes.items() if x.error] == [3, 4]


def test_arguments_and_functions_that_make_environments(mine):
    for name in ("Count(until=1)", "maker(until=1)"):
        with EnvironmentPool(EnvironmentSettings(path=f"{mine}:{name}")) as games:
            games.reset([{}], [0])
            assert games.step({0: "x"})[0].terminated


def test_an_instance_is_copied_for_every_episode(mine):
    given = {"memory:Count": module_at(mine).Count(until=2)}
    with EnvironmentPool(EnvironmentSettings(path="memory:Count"), given) as games:
        games.reset([{}, {}], [0, 1])
        assert not games.step({0: "x", 1: "x"})[1].terminated


@catches("rows beside one that ended the process begin anew", "asked twice after a death")
@catches("rows that are to be asked again are lost")
def test_slow_rows_in_this_process_all_have_their_outcomes(monkeypatch):
    monkeypatch.setattr("lmpg.language.environments.text_episodes.TOGETHER", -1.0)
    path = "lmpg.language.worlds.tasks.guessing:Guess"
    with EnvironmentPool(EnvironmentSettings(path=path)) as games:
        games.reset([{"number": n} for n in (1, 8, 15)], [0, 0, 0])
        found = games.step({0: "8", 1: "8", 2: "8"})
    assert [found[row].observation for row in range(3)] == ["lower\n", "right\n", "higher\n"]


def test_rows_whose_process_was_ended_by_another_go_on_as_they_were(mine):
    settings = EnvironmentSettings(path=f"{mine}:Count", timeout=0.3)
    with EnvironmentPool(settings) as games:
        games.reset([{}] * 4, [5, 6, 7, 8])
        games.step({0: "a", 1: "b", 2: "c", 3: "d"})
        outcomes = games.step({0: "a", 1: "dies", 2: "hangs", 3: "floods"})
        assert outcomes[1].error == "its process ended with exit code 3"
        assert outcomes[2].error == "step gave no reply within environment.timeout of 0.3 s"
        assert [outcomes[i].observation for i in (0, 3)] == ["5: 2 a", "8: 2 floods"]
        assert games.step({0: "z"})[0].terminated


@catches("another outcome after the environment was made again taken for the first")
def test_one_that_does_not_repeat_itself_is_lost_with_its_process(mine):
    with EnvironmentPool(EnvironmentSettings(path=f"{mine}:Forgetful", timeout=5)) as games:
        games.reset([{}] * 2, [5, 6])
        games.step({0: "a", 1: "b"})
        outcomes = games.step({0: "dies", 1: "b"})
        assert "played again, it gives another outcome" in outcomes[1].error


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine.py:Unmade", r"cannot make Unmade: OSError: no such server \(mine.py, line "),
        ("none.py:Count", "the file none.py of 'none.py:Count' doesn't exist"),
        ("mine.py:", "names no environment"),
        ("Cuont", "there is no built-in environment 'Cuont'"),
        ("memory:Count", "was given to lmpg.train as an object"),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_work(path, message, mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    with pytest.raises(UserError, match=message):
        EnvironmentPool(EnvironmentSettings(path=path))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Halting", {}, r"a Halting has no method step\(action\)"),
        ("Cuont", {}, "Did you mean Count?"),
        ("Count", {"until": 1, "x": 2}, "unexpected keyword argument 'x'"),
    ],
)
def test_a_worker_s_first_reply_says_what_cannot_be_made(name, arguments, message, mine):
    start, _ = serving({"spec": f"{mine}:{name}", "arguments": arguments}, load, print)
    with pytest.raises((AttributeError, TypeError), match=message):
        start()


def test_a_method_that_takes_other_arguments_is_refused_without_a_place_in_lmpg(pool):
    """`Old.reset` takes no seed: the last frame is one of lmpg's, of no use to the user."""
    said = r"cannot be called as reset\(seed, options\): got an unexpected keyword argument 'seed'$"
    with pytest.raises(UserError, match=said):
        pool("Old")


def test_a_row_that_cannot_be_passed_is_refused_with_what_it_holds(pool):
    with pytest.raises(UserError, match="gets the rows of the data, and one of them holds set"):
        pool("Count").reset([{"x": {1, 2}}], [0])


def test_settings_without_an_environment_have_no_effect_and_are_refused():
    with pytest.raises(ValueError, match=r"environment\.max_turns = 3 has no effect without"):
        EnvironmentSettings(max_turns=3)
    assert not EnvironmentSettings().wanted
    tools = EnvironmentSettings(tools=("mine.py:add",))
    assert (tools.wanted, tools.has_episodes) == (True, False)
    assert EnvironmentSettings(path="mine.py:Count").has_episodes
