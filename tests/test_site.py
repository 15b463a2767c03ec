"""The site that `make docs` builds: its map and its reference, without the extra `docs`."""

from __future__ import annotations

import importlib
import re

import yaml

import lmpg
from tests.support.planted import catches
from tests.support.programs import ROOT

PAGES = {path.name for path in (ROOT / "docs").glob("*.md")}
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^::: (\S+)$", REFERENCE, re.M)


def places(nav: object) -> list[str]:
    """The pages in a `nav` of mkdocs.yml, in their order."""
    if isinstance(nav, str):
        return [nav]
    items = nav.values() if isinstance(nav, dict) else nav
    return [place for item in items for place in places(item)]


@catches("a page that neither the site's menu nor the map leads to")
def test_the_map_and_the_menu_lead_to_every_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert PAGES - {"index.md"} - set(re.findall(r"\]\(([\w.]+)\)", text)) == set()
    menu = places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == sorted([*PAGES, "files/CONTRIBUTING.md"])


@catches("a name of the reference that the code no longer has")
def test_the_reference_names_what_there_is():
    for name in NAMES:
        parent, _, leaf = name.rpartition(".")
        module = importlib.import_module(parent)
        assert hasattr(module, leaf) or importlib.import_module(name), name


def test_the_reference_has_all_that_the_package_offers_and_every_section():
    offered = [f"lmpg.{name}" for name in lmpg.__all__]
    offered += [f"lmpg.gym.{name}" for name in ("train", "load", "evaluate", "record")]
    assert [name for name in offered if name not in NAMES] == []
    sections = [path for path in (ROOT / "lmpg").rglob("settings.py") if "gym" not in path.parts]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sections}
    shown = {name for name in NAMES if name.endswith(".settings")}
    assert modules - shown - {"lmpg.language.settings", "lmpg.language.stages.settings"} == set()
