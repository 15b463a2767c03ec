"""The examples run as they are written, and learn."""

from __future__ import annotations

import ast
from types import ModuleType

import pytest

from tests.support.planted import catches
from tests.support.programs import ROOT, module_at

PAGE = ROOT / "examples" / "ppo_in_one_page.py"
ALLOWED = {"__future__", "copy", "torch", "transformers"}
OF_LMPG = ("lmpg.algorithms", "lmpg.functional", "lmpg.types")


@pytest.fixture
def page() -> ModuleType:
    """The example as a module."""
    return module_at(PAGE)


def test_the_page_is_one_page_and_needs_formulas_and_algorithms_alone():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    imported = {
        module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    others = {name for name in imported if name.split(".")[0] not in ALLOWED}
    assert [name for name in others if not name.startswith(OF_LMPG)] == []


def test_the_same_seed_gives_the_same_scores(page, monkeypatch):
    monkeypatch.setattr(page, "ITERATIONS", 2)
    assert page.main() == page.main()


@catches("the example's scores with their sign turned")
@pytest.mark.slow
def test_the_page_learns_to_count(page, capsys):
    means = page.main()
    assert means[0] < 0
    assert sum(means[-10:]) / 10 > 2.8  # 4 is the best; a random response has about −1
    lines = capsys.readouterr().out.splitlines()
    assert 5 <= len(lines) <= 10
