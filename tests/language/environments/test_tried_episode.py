"""A wrong environment is found by one tried episode, before a run has done any work."""

from __future__ import annotations

import pytest

from lmpg.language.environments.pool import EnvironmentPool
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import module_at

CODE = """
import pathlib

class Closes:
    def reset(self, *, seed, options):
        self.file = options.get("closed")
        return f"seed {seed}", {}

    def step(self, action):
        return f"{action!r}?", 1.0, False, False, {}

    def close(self):
        if getattr(self, "file", None):
            pathlib.Path(self.file).write_text("yes")

class Raises(Closes):
    def step(self, action):
        raise ValueError("nothing was said")

class TooFew(Closes):
    def step(self, action):
        return "higher", 1.0, False, {}

class Nothing(Closes):
    def reset(self, *, seed, options): ...

class Silent(Closes):
    def reset(self, *, seed, options):
        return "", {}

class Unreadable(Closes):
    def reset(self, *, seed, options):
        return [{"text": "begin"}], {}
"""


@pytest.fixture(params=["worker", "trainer"])
def pool(request, tmp_path):
    """Makes a pool of one of the environments in CODE, in a worker or in this process."""
    path, made = tmp_path / "mine.py", list[EnvironmentPool]()
    path.write_text(CODE)

    def make(name: str) -> EnvironmentPool:
        spec, given = f"{path}:{name}", {}
        if request.param == "trainer":
            spec = f"memory:{name}"
            given = {spec: getattr(module_at(path), name)}
        made.append(EnvironmentPool(EnvironmentSettings(path=spec), given))
        return made[-1]

    yield make
    for one in made:
        one.close()


@catches("a wrong return value found in the first evaluation", "only wrong kinds are refused")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TooFew", "step returned 4 values, exp"),
        ("Nothing", "reset returned a NoneType, exp"),
        ("Silent", "reset gave no observation, and the row has no prompt"),
        ("Unreadable", "its observation"),
    ],
)
def test_a_wrong_return_value_is_found_by_a_tried_episode(name, said, pool, caplog):
    with pytest.raises(UserError, match=rf"environment\.path: {name} was tried .*: {said}"):
        pool(name).try_episode({})
    assert "costs the row" not in caplog.text


@catches("a tried episode left open")
def test_what_a_tried_episode_raises_is_left_to_the_run_and_its_environment_is_closed(
    pool, caplog, tmp_path
):
    games, closed = pool("Raises"), tmp_path / "closed"
    games.try_episode({"closed": str(closed)})
    assert closed.read_text() == "yes"
    assert "costs the row" not in caplog.text
    games = pool("Closes")
    games.try_episode({"closed": str(tmp_path / "open")})
    assert (tmp_path / "open").read_text() == "yes"
    assert games.reset([{}], [3])[0].observation == "seed 3"
