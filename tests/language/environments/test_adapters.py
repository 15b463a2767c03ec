"""Environments of other libraries: against the library where it is installed, else a double."""

from __future__ import annotations

import json
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace

import gymnasium
import pytest

from lmpg.language.environments.adapters import textarena_games
from lmpg.language.environments.adapters.gymnasium_text import GymnasiumText
from lmpg.language.environments.adapters.openenv_session import OpenEnvSession
from lmpg.language.environments.adapters.reasoning_attempts import ReasoningAttempts
from lmpg.language.environments.adapters.textarena_games import TextArena
from lmpg.language.environments.local_rows import LocalRows
from lmpg.language.environments.plan import Plan
from tests.support.planted import catches

TEXT = gymnasium.spaces.Text(20)


class Echo(gymnasium.Env):
    """Repeats what is said, three times."""

    observation_space = action_space = TEXT

    def __init__(self, mark="!"):
        self.mark = mark

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return f"{self.np_random.integers(1000)} {options}", {}

    def step(self, action):
        return action + self.mark, 1.0, False, False, {}


@pytest.fixture
def registered():
    gymnasium.register("Echo-v0", lambda **how: Echo(**how), max_episode_steps=3)
    gymnasium.register("Cart-v0", lambda: gymnasium.make("CartPole-v1"))
    yield
    for name in ("Echo-v0", "Cart-v0"):
        del gymnasium.registry[name]


def test_a_registered_environment_of_texts_is_one_and_its_limit_truncates(registered):
    echo = GymnasiumText("Echo-v0", mark="?")
    first, _ = echo.reset(seed=3, options={"a": 1})
    assert first == GymnasiumText("Echo-v0").reset(seed=3, options={"a": 1})[0]
    assert [echo.step("x")[:4] for _ in range(3)] == [
        ("x?", 1.0, False, False),
        ("x?", 1.0, False, False),
        ("x?", 1.0, False, True),
    ]
    with pytest.raises(TypeError, match=r"observation_space Box.*expected gymnasium.spaces.Text"):
        GymnasiumText("Cart-v0")
    with pytest.raises(ValueError, match="module registers is given as module:ID"):
        GymnasiumText("Ehco-v0")


class Sum:
    """A task of reasoning-gym: the entry's index is the sum."""

    def __getitem__(self, index):
        return {"question": f"{index} + 0?", "answer": str(index)}

    def score_answer(self, answer, entry):
        return 1.0 if answer == entry["answer"] else 0.01 * len(answer)


@pytest.fixture
def reasoning(monkeypatch):
    module = ModuleType("reasoning_gym")
    module.create_dataset = lambda name, **_: Sum()
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


@catches("the reward of the first attempt", "a right answer asked for again")
def test_a_question_is_answered_in_several_attempts(reasoning):
    row = {"task": "sums", "arguments": {"seed": 4}, "index": 7}
    game = ReasoningAttempts(attempts=3, cost=0.25)
    first, info = game.reset(seed=0, options={"reasoning_gym": row, "prompt": "Seven?"})
    assert (first, info) == ("Seven?", {"state": "7 + 0?"})
    said = game.step("<answer>8</answer>")
    assert said[:4] == ("That is not right. Try again: 2 attempts left.", 0.0, False, False)
    assert game.step("It is <answer>7</answer>")[1:3] == (0.75, True)
    game.reset(seed=0, options={"reasoning_gym": row})
    wrong = [game.step("nothing")[1:3] for _ in range(3)]
    assert wrong == [(0.0, False), (0.0, False), (pytest.approx(0.07 - 0.5), True)]


def test_a_named_task_asks_what_the_seed_picks_and_without_one_the_row_must(reasoning):
    game = ReasoningAttempts(task="sums", size=10)
    assert game.reset(seed=13, options={})[0] == "3 + 0?"
    with pytest.raises(ValueError, match=r"no column reasoning_gym; take --data\.path"):
        ReasoningAttempts().reset(seed=0, options={})
    with pytest.raises(ValueError, match="size is given, but no task"):
        ReasoningAttempts(size=3)


class Dice:
    """A game of TextArena, which draws from the global generator, as its games do."""

    def __init__(self, sides=6):
        self.sides = sides
        self.state = SimpleNamespace(done=False)

    def reset(self, num_players, seed=None):
        random.seed(seed)
        self.told, self.players, self.turn = [(-1, f"{self.sides} sides", 0)], num_players, 0

    def get_observation(self):
        told, self.told = self.told, []
        return self.turn, told

    def step(self, action):
        self.told += [(self.turn, action, 1), (-1, f"rolled {random.randint(1, self.sides)}", 2)]
        self.turn = (self.turn + 1) % self.players
        self.state.done = action == "stop"
        return self.state.done, {}

    def close(self):
        return {0: 0.5}, {0: {"reason": "You stopped."}}


@pytest.fixture
def arena(monkeypatch):
    module = ModuleType("textarena")
    known = {"Dice-v0": Dice, "Dice-v0-raw": Dice}
    module.envs = SimpleNamespace(registration=SimpleNamespace(ENV_REGISTRY=known))
    module.make = lambda name, **how: known[name](**how)
    monkeypatch.setitem(sys.modules, "textarena", module)


@catches("episodes that draw from each other's numbers", "the player's own words observed again")
def test_a_game_draws_its_own_numbers_whatever_goes_on_beside_it(arena):
    alone, beside = TextArena("Dice-v0", sides=1000), TextArena("Dice-v0", sides=1000)
    assert alone.reset(seed=1, options={})[0] == "1000 sides"
    rolls = [alone.step("roll")[0] for _ in range(3)]
    alone.reset(seed=1, options={})
    beside.reset(seed=2, options={})
    again = []
    for _ in range(3):
        again.append(alone.step("roll")[0])
        beside.step("roll")
    drawn = random.Random(1)
    assert again == rolls == [f"rolled {drawn.randint(1, 1000)}" for _ in range(3)]
    ended = alone.step("stop")
    assert ended[1:] == (0.5, True, False, {"reason": "You stopped."})


def test_others_play_by_a_function_and_a_game_that_is_not_there_is_told(arena, monkeypatch):
    monkeypatch.setattr(textarena_games, "load", lambda spec: lambda told: f"saw {len(told)}")
    game = TextArena("Dice-v0", num_players=2, opponent="mine.py:player")
    game.reset(seed=1, options={})
    observation = game.step("roll")[0]
    assert "saw " in observation
    with pytest.raises(ValueError, match="needs an opponent"):
        TextArena("Dice-v0", num_players=2)
    with pytest.raises(ValueError, match="has no game 'Dise-v0'"):
        TextArena("Dise-v0")


class Client:
    """OpenEnv's client of a server that counts letters."""

    def __init__(self, base_url):
        self.count = 0

    async def reset(self, **how):
        self.loop = __import__("asyncio").get_running_loop()
        return self.result(f"seed {how['seed']}", None, False)

    async def step(self, action):
        assert self.loop is __import__("asyncio").get_running_loop()
        self.count += len(action["text"]) * action["times"]
        return self.result(str(self.count), 1.0, self.count > 5)

    def result(self, text, reward, done):
        observation = {"said": text, "reward": reward, "done": done, "metadata": {}}
        return SimpleNamespace(observation=observation, reward=reward, done=done)

    async def close(self):
        self.count = -1


class Schema(BaseHTTPRequestHandler):
    """The page of an OpenEnv server that says what actions there are."""

    def do_GET(self):
        body = {"action": {"properties": {"text": {}, "times": {}, "metadata": {}}}}
        self.send_response(200 if self.path == "/schema" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    core = ModuleType("openenv.core")
    core.GenericEnvClient = Client
    monkeypatch.setitem(sys.modules, "openenv", ModuleType("openenv"))
    monkeypatch.setitem(sys.modules, "openenv.core", core)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Schema)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


@catches("a session that lives in another loop than it was opened in")
def test_sessions_of_an_openenv_server_go_on_in_one_loop(server):
    rows = LocalRows(Plan("letters", "environment.path", 5.0, make=lambda: session(server)))
    resets = [{"row": i, "seed": i, "options": {}} for i in range(3)]
    first = rows.submit(resets, True).result()
    assert [x["observation"] for x in first] == ["seed 0", "seed 1", "seed 2"]
    steps = rows.submit([{"row": i, "action": "ab" * i} for i in range(3)], False).result()
    assert [(x["observation"], x["terminated"]) for x in steps] == [
        ("0", False),
        ("4", False),
        ("8", True),
    ]
    rows.close()


def session(server: str) -> OpenEnvSession:
    return OpenEnvSession(server, action="text", times=2)


def test_a_server_that_is_not_there_or_wants_other_fields_is_told(server):
    with pytest.raises(ValueError, match=r"have no 'message', but text, times; .* action='text'"):
        OpenEnvSession(server)
    with pytest.raises(ValueError, match="no OpenEnv server replies at"):
        OpenEnvSession("http://127.0.0.1:9")
    assert session(server)._read({"a": 1, "b": [2], "done": False}) == '{"a": 1, "b": [2]}'
    assert OpenEnvSession(server, "text", "b")._read({"a": 1, "b": "x"}) == "x"


def test_an_adapter_whose_library_is_not_installed_says_what_to_install(monkeypatch):
    for name in ("textarena", "openenv.core", "verifiers"):
        monkeypatch.setitem(sys.modules, name, None)
    from lmpg.language.environments.adapters.verifiers_rollout import VerifiersRollout

    for make in (
        lambda: TextArena("Wordle-v0"),
        lambda: OpenEnvSession("http://x"),
        lambda: VerifiersRollout("wordle"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'lmpg\["):
            make()
