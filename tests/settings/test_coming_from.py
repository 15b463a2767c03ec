"""docs/coming_from.md: what it calls ours is ours, and hints on the command line say the same."""

from __future__ import annotations

import re

import pytest

from lmpg.cli.main import methods, settings_class
from lmpg.gym.settings import GYM_METHODS, gym_settings_class
from lmpg.settings.foreign_names import FOREIGN
from lmpg.settings.presets import preset_names
from lmpg.settings.raw import paths_of
from tests.support.planted import catches
from tests.support.programs import ROOT

PAGE = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
ROWS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and line.count("|") == 4
]


@pytest.fixture(scope="module")
def ours() -> set[str]:
    """All settings of all methods, for language models and agents; and where a method is named."""
    kinds = [*map(settings_class, methods()), *map(gym_settings_class, GYM_METHODS)]
    return {path for kind in kinds for path in paths_of(kind)} | {"algorithm.name"}


@catches("a setting on the right that was renamed")
def test_every_setting_and_method_on_our_side_exists(ours):
    assert len(ROWS) > 100
    named = [name for _, right, _ in ROWS for name in right if "." in name]
    sections = {path.partition(".")[0] for path in ours}
    named += [
        name
        for name in re.findall(r"`(\w+\.\w[\w.]*)`", PAGE)
        if name.partition(".")[0] in sections and name not in {x for row in ROWS for x in row[0]}
    ]
    assert sorted({*named} - ours) == []
    known = {*methods(), *preset_names()}
    trained = [n for x in re.findall(r"`lmpg train (\w+)`(?:, `(\w+)`)?", PAGE) for n in x if n]
    assert len(trained) > 12
    assert [name for name in trained if name not in known] == []


@catches("a row that says something else than the hint on the command line")
def test_the_page_and_the_hints_agree():
    other = []
    for theirs, right, _ in ROWS:
        for name in theirs:
            parts = name.split(".")
            ways = [".".join(parts[start:]) for start in range(len(parts))]
            hints = next((FOREIGN[way].split() for way in ways if way in FOREIGN), [])
            leaves = {path.rpartition(".")[2] for path in right}
            if hints and right and not {*hints} & {*right} and parts[-1] not in leaves:
                other.append((name, right, hints))
    assert other == []


def test_most_names_of_the_page_are_answered_on_the_command_line(ours):
    leaves = {path.rpartition(".")[2] for path in ours}
    names = [name for theirs, right, _ in ROWS if right for name in theirs if name[0].islower()]
    known = [x for x in names if x in FOREIGN or x.rpartition(".")[2] in {*FOREIGN, *leaves}]
    assert len(known) > 0.9 * len(names), sorted({*names} - {*known})
