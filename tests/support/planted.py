"""The bugs that were planted to see a test fail, each written beside the test that caught it.

`python -m tests.support.planted` prints them all as a page, read from the tests' sources.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

TESTS = Path(__file__).parent.parent
Test = TypeVar("Test", bound=Callable[..., object])


def catches(*bugs: str) -> Callable[[Test], Test]:
    """Decorates a test with the bugs that turned it red when they were planted in the code.

    The test itself stays as it is; its attribute `caught` holds the bugs.
    """

    def decorate(test: Test) -> Test:
        test.caught = bugs  # type: ignore[attr-defined]
        return test

    return decorate


def is_catches(node: ast.AST) -> bool:
    """Whether a node of a syntax tree is `catches(...)`."""
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) == "catches"


def collected(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """The test functions of a file by name, as pytest collects them: of two the last one counts."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: node for node in functions if node.name.startswith("test_")}


def caught_bugs(source: str) -> dict[str, list[str]]:
    """Name of a test → the bugs it catches, for the decorated tests of one file in their order."""
    return {
        name: [ast.literal_eval(bug) for use in uses for bug in use.args]
        for name, test in collected(ast.parse(source)).items()
        if (uses := [node for node in test.decorator_list if is_catches(node)])
    }


def sources() -> dict[str, str]:
    """Path, from the repository's root → text, of every file that pytest collects tests from."""
    paths = sorted(TESTS.rglob("test_*.py"))
    return {str(p.relative_to(TESTS.parent)): p.read_text(encoding="utf-8") for p in paths}


def page() -> str:
    """All planted bugs in Markdown: a heading for every file, a line for every bug."""
    lines = ["# Planted bugs, and the tests that caught them"]
    for path, source in sources().items():
        if tests := caught_bugs(source):
            lines += ["", f"## {path}", ""]
            lines += [f"- {bug}: `{test}`" for test, bugs in tests.items() for bug in bugs]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
