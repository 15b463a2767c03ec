"""README, CONTRIBUTING and docs: short, with links, paths, modules and flags that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import gymnasium
import pytest

from lmpg.algorithms import ALGORITHMS
from lmpg.cli.main import methods, settings_class
from lmpg.gym.settings import GYM_METHODS, gym_settings_class
from lmpg.settings.presets import preset_names
from lmpg.settings.section import Section
from tests.support.planted import catches

ROOT = Path(__file__).parent.parent
PAPERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAPERS += sorted((ROOT / "docs").glob("*.md"))
FOLDERS = "lmpg|tests|docs|configs|scripts|benchmarks|examples"
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./*-]*")
MODULE = re.compile(r"(?<![\w/.-])(?:lmpg|tests)(?:\.[a-zA-Z_]\w*)+(?![\w/])")
INVENTED = {"lmpg/algorithms/gpg.py", "lmpg/presets/algorithms/gpg.yaml", "lmpg.algorithms.gpg"}
PLACEHOLDER = re.compile(r"[A-Z]{2,}")  # METHOD_ENV.yaml stands for many files
FLAG = re.compile(r"--([a-z]+)\.([a-z][a-z0-9-]*)")


def prose(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code(page: Path) -> list[str]:
    """What the page prints as code: fenced and indented blocks, and spans in backticks."""
    text = prose(page)
    fenced = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.S | re.M)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
    indented = [line for line in rest.splitlines() if line.startswith("    ")]
    return [*fenced, *indented, *re.findall(r"`([^`\n]+)`", rest)]


def is_there(path: str) -> bool:
    """Whether the repository has such a file or folder, or gymnasium such an environment.

    A star stands for any name.
    """
    if path in gymnasium.registry or path in INVENTED:
        return True
    return any(ROOT.glob(path.rstrip("./")))


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    try:
        importlib.import_module(name)
        return True
    except ModuleNotFoundError:
        parent, _, attribute = name.rpartition(".")
        return is_module(parent) and hasattr(importlib.import_module(parent), attribute)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def flags(settings: type[Section]) -> set[tuple[str, str]]:
    """(section, key) of all settings of a run."""
    found = set()
    for name, field in settings.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})
        found |= {(name, key) for key in keys}
    return found


@catches("a link to a heading that is not there")
@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@catches("a folder by its old name")
@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_every_path_and_module_that_is_named_exists(page):
    wrong = []
    for text in code(page):
        paths = [path for path in PATH.findall(text) if not PLACEHOLDER.search(path)]
        paths += [f"*/**/{name}" for name in re.findall(r"^\w+\.py$", text)]
        wrong += [path for path in paths if not is_there(path)]
        wrong += [x for x in MODULE.findall(text) if x not in INVENTED and not is_module(x)]
    assert wrong == []


@catches("a flag or a method with a typing error in it")
@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_every_command_names_what_there_is(page):
    names, makefile, wrong = {*methods(), *preset_names(), "gpg"}, prose(ROOT / "Makefile"), []
    known = {("algorithm", "name")}  # read before the settings' class is known
    for settings in [*map(settings_class, methods()), *map(gym_settings_class, GYM_METHODS)]:
        known |= flags(settings)
    sections = {section for section, _ in known}
    for text in code(page):
        wrong += [n for n in re.findall(r"\blmpg train ([a-z_]+)", text) if n not in names]
        targets = re.findall(r"^\s*make ([a-z]+)", text, re.M)
        wrong += [target for target in targets if f"\n{target}:" not in makefile]
        for section, key in FLAG.findall(text):
            if section in sections and (section, key.replace("-", "_")) not in known:
                wrong.append(f"--{section}.{key}")
    assert wrong == []


@catches("the README's algorithm differs from the file")
def test_the_readme_shows_an_algorithm_as_it_stands():
    path, shown = re.search(
        r"\((lmpg/algorithms/\w+\.py)\) as it stands:\n\n```python\n(.*?)```",
        prose(PAPERS[0]),
        re.S,
    ).groups()
    assert shown == (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAPERS[:2], ids=lambda page: page.name)
def test_a_newcomer_can_read_it_whole(page):
    assert len(prose(page).splitlines()) <= 150


@catches("a method left out of the table")
def test_every_method_and_preset_is_in_the_table_of_methods():
    named = set(re.findall(r"`(\w+)`", prose(ROOT / "docs" / "methods.md")))
    assert {*methods(), *preset_names(), *GYM_METHODS, *ALGORITHMS} - named == set()


@catches("a formula by a name that it does not have")
def test_every_formulas_file_is_linked_where_it_is_named():
    text = prose(ROOT / "docs" / "methods.md")
    for names, path in re.findall(r"\[([a-z0-9_, ]+)\]\(\.\./(lmpg/functional/\w+\.py)\)", text):
        source = (ROOT / path).read_text(encoding="utf-8")
        assert [n for n in names.split(", ") if f"def {n}(" not in source] == []
