"""docs/python.md: its snippets run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import lmpg
from tests.support.programs import ROOT, module_at
from tests.support.tiny import save_tiny

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_snippets_of_the_page_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    assert len(SNIPPETS) == 4
    monkeypatch.chdir(tmp_path)
    save_tiny("my-model")
    (tmp_path / "page.py").write_text("\n".join(SNIPPETS))
    page = module_at(tmp_path / "page.py")
    assert len(page.best) == 2
    assert [lmpg.load(path).summary["steps"] for path in sorted(Path("runs").iterdir())] == [
        2,
        2,
        3,
    ]
    assert "Run('runs/first', finished after 2 steps)" in capsys.readouterr().out


def test_the_page_names_all_that_the_package_offers():
    assert [name for name in lmpg.__all__ if f"lmpg.{name}" not in PAGE and name != "Run"] == []
    assert "`Run`" in PAGE
