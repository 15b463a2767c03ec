"""A misspelt name is told from the text of its file, before anything is imported or loaded."""

from __future__ import annotations

import os
import re

import pytest

from lmpg.language.missing import refuse_missing_paths
from lmpg.language.rewards.specs import KEY, parsed_spec, refuse_missing_name
from lmpg.settings.section import UserError
from tests.language.environments.test_named import settings_of
from tests.support.planted import catches

REWARDS = """
import json
from os.path import exists as there
TIMEOUT = 3
raise SystemExit("this file was run")
def _own(completions): return []
def short(completions): return []
async def exact(completions): return []
class Judge: ...
if TIMEOUT:
    alone = lambda completions: []
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(spec: str) -> None:
    refuse_missing_name(parsed_spec(spec), KEY)


@catches("a misspelt reward function is told only once the model is loaded")
def test_misspelt_names_are_all_told_at_once_with_those_that_there_are(mine):
    environment = {"path": "mine.py:Jugde", "tools": ("mine.py:short_", "mine.py:short")}
    rewards = {"functions": ("mine.py:exakt(n=1)", "nowhere:exact", "exact_match")}
    with pytest.raises(UserError) as told:
        refuse_missing_paths(settings_of(environment=environment, rewards=rewards), ("model",))
    file = mine / "mine.py"
    none = f"{file} has no function or class"
    assert str(told.value).splitlines() == [
        f"rewards.functions = mine.py:exakt(n=1): {none} 'exakt', expected one of exact, short, "
        "Judge; write mine.py:exact",
        "rewards.functions = nowhere:exact: there is no module 'nowhere', expected one that Python "
        "can import; mend the name, install it, or start lmpg in the folder that it lies in",
        f"environment.path = mine.py:Jugde: {none} 'Jugde', expected one of Judge, exact, short; "
        "write mine.py:Judge",
        f"environment.tools = mine.py:short_: {none} 'short_', expected one of short, exact, "
        "Judge; write mine.py:short",
    ]


@pytest.mark.parametrize("name", ["short", "exact", "Judge", "_own", "alone", "there", "TIMEOUT"])
def test_whatever_a_file_binds_is_left_to_the_worker(mine, name):
    refuse(f"mine.py:{name}")


@catches("names that a module makes as it runs are refused")
@pytest.mark.parametrize(
    "text",
    [
        "from os.path import *",
        "def __getattr__(name): return len",
        "globals()['re' + 'ward'] = len",
        "import sys; setattr(sys.modules[__name__], 're' + 'ward', len)",
        "def f():\n    global reward\n    reward = len\nf()",
    ],
)
def test_names_that_only_running_a_file_can_tell_are_left_to_the_worker(mine, text):
    (mine / "mine.py").write_text(text)
    refuse("mine.py:reward")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"def reward(:", r"is not Python, .*SyntaxError: .*\(mine.py, line 1\); mend it there"),
        (b"x = '\xff'", "is not Python, expected a file that can be imported"),
        (b"x = 3", "has no function or class 'reward', expected it to define one; mend the name"),
    ],
)
def test_a_file_that_cannot_hold_the_name_is_refused(mine, text, said):
    (mine / "mine.py").write_bytes(text)
    with pytest.raises(UserError, match=f"rewards.functions = mine.py:reward: .*{said}"):
        refuse("mine.py:reward")


def test_modules_are_looked_through_without_being_imported(mine):
    for folder, text in (("a/b", "raise SystemExit"), ("c/d", "import sys; sys.modules['x'] = 1")):
        (mine / folder).mkdir(parents=True)
        (mine / folder / "__init__.py").write_text(text)
    (mine / "a/__init__.py").write_bytes(b"# \xff, which UTF-8 has not")
    (mine / "a/b/e.py").write_text(REWARDS)
    refuse("a.b.e:exact")
    refuse("c.d.not_here:reward")  # the package may make it
    refuse("os.path:exists")
    for spec, said in [
        ("a.b.e:exat", "a.b.e has no function or class 'exat', expected one of exact"),
        ("a.b.f:exact", "there is no module 'f' in a.b, expected"),
        ("a.g:exact", "there is no module 'g' in a, expected"),
    ]:
        with pytest.raises(UserError, match=re.escape(said)):
            refuse(spec)


def test_a_module_that_has_just_been_written_is_found(mine):
    with pytest.raises(UserError, match="there is no module 'new'"):
        refuse("new:reward")
    before = (mine.stat().st_atime_ns, mine.stat().st_mtime_ns)
    (mine / "new.py").write_text("def reward(completions): ...")
    os.utime(mine, ns=before)  # as of a file that is written within a tick of the clock
    refuse("new:reward")
