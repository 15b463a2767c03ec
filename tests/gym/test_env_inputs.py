"""The file of an environment of one's own is an input of its runs, as a reward's is."""

from __future__ import annotations

import gymnasium
import pytest

from lmpg.gym.program import env_inputs
from tests.support.planted import catches

MODULE = """
import gymnasium
import env_rules
from gymnasium.envs.classic_control import CartPoleEnv

class Mine(CartPoleEnv):
    pass

gymnasium.register("Mine-v0", {entry})
"""


@catches("an environment edited between a run's two halves taken in silence")
@pytest.mark.parametrize("entry", ['"my_env_{}:Mine"', "Mine"])
def test_an_environment_and_what_it_imports_are_inputs(tmp_path, monkeypatch, entry):
    module = f"my_env_{len(entry)}"
    (tmp_path / "env_rules.py").write_text("GRAVITY = 9.8\n")
    text = MODULE.replace("{entry}", entry.replace("{}", str(len(entry))))
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = env_inputs(f"{module}:Mine-v0")["env.id"]
    finally:
        gymnasium.registry.pop("Mine-v0", None)
    assert set(found.values()) == {tmp_path / f"{module}.py", tmp_path / "env_rules.py"}


def test_environments_of_libraries_and_of_lmpg_have_no_files_to_look_at():
    assert env_inputs("CartPole-v1") == {"env.id": {}}
    assert env_inputs("lmpg/Corridor-v0") == {"env.id": {}}
