"""Every planted bug that is listed belongs to a test that runs, and the list does not shrink."""

from __future__ import annotations

import ast
from collections import Counter

from tests.support.planted import TESTS, catches, caught_bugs, collected, is_catches, page, sources

AT_LEAST = 385
"""Bugs on the list when it moved beside the tests. Who rewrites a test takes its bugs along."""


def strays(source: str, path: str = "test_it.py") -> list[int]:
    """The lines of every `catches(...)` that is no decorator of a test that pytest collects."""
    tree = ast.parse(source)
    tests = collected(tree) if path.rpartition("/")[2].startswith("test_") else {}
    decorators = {id(node) for test in tests.values() for node in test.decorator_list}
    return [n.lineno for n in ast.walk(tree) if is_catches(n) and id(n) not in decorators]


@catches("a bug on a helper, on a method or on a test that another one of its name replaces")
def test_only_tests_that_pytest_collects_catch_bugs():
    for path in TESTS.rglob("*.py"):
        assert strays(path.read_text(encoding="utf-8"), path.name) == [], path
    mark = "@catches('x')\n"
    assert strays(mark + "def test_a(): ...") == []
    assert strays(mark + "def test_a(): ...", "helper.py") == [1]
    assert strays(mark + "def helper(): ...") == [1]
    assert strays("class TestA:\n    " + mark + "    def test_a(self): ...") == [2]
    assert strays(mark + "def test_a(): ...\n" + mark + "def test_a(): ...") == [1]


def test_bugs_are_told_once_and_in_words():
    found = [bugs for source in sources().values() for bugs in caught_bugs(source).values()]
    assert [] not in found
    told = Counter(bug for bugs in found for bug in bugs)
    assert [bug for bug, times in told.items() if times > 1] == []
    assert [bug for bug in told if len(bug.split()) < 2 or bug != bug.strip()] == []
    assert len(told) >= AT_LEAST


@catches("the page leaves out the tests with parameters, or all bugs of a test but its first")
def test_the_page_has_every_bug_with_its_test_and_file():
    source = "@mark.parametrize('n', [1])\n@catches('bug a', 'bug b')\ndef test_a(n): ...\n"
    assert caught_bugs(source) == {"test_a": ["bug a", "bug b"]}
    lines = page().splitlines()
    mine = test_the_page_has_every_bug_with_its_test_and_file
    heading = lines.index("## tests/test_planted.py")
    assert f"- {mine.caught[0]}: `{mine.__name__}`" in lines[heading:]
