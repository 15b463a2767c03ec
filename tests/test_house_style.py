"""The limits of the house style, and what no file may contain."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("lmpg", "scripts", "examples", "tests", "benchmarks", "docs")
FILES = sorted(
    str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
)
MAX_LINES, MAX_FUNCTION_LINES, MAX_WIDTH = 300, 40, 100
MAX_CLASSES = 362  # in all of lmpg: every class is a word that a reader has to learn
METHOD_LINES = {  # folder: lines of a method's file
    "lmpg/algorithms": 60,
    "lmpg/algorithms/fixed_data": 60,
    "lmpg/gym/classic": 120,
}
METHODS = {path: n for folder, n in METHOD_LINES.items() for path in (ROOT / folder).glob("*.py")}
NAMELESS = {"utils", "util", "common", "base", "helpers", "misc"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def long_functions(tree: ast.AST) -> list[str]:
    """Functions longer than the limit, from `def` to their last line."""
    return [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes, functions and methods without a docstring, and the module if it has none."""
    missing = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        prefix, parent = stack.pop()
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                stack.append((f"{prefix}{node.name}.", node))
    return missing


def unsafe(tree: ast.AST) -> list[str]:
    """What could run code that comes with data: pickle, eval, exec, yaml.load, torch.load."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in ("pickle", "dill", "marshal")]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            safe = any(
                k.arg == "weights_only" and getattr(k.value, "value", None) is True
                for k in node.keywords
            )
            if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load") or (
                called == "torch.load" and not safe
            ):
                found.append(called)
    return found


def unhelpful_names(tree: ast.AST) -> list[str]:
    """Functions called get_… or compute_…: nouns compute, verbs change."""
    functions = [node.name for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    return [name for name in functions if name.lstrip("_").startswith(("get_", "compute_"))]


def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES)
def test_files_functions_and_lines_are_short(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES, f"{path} has {len(lines)} lines"
    widths = [len(re.sub(r"\s*# (type: ignore|noqa).*", "", line)) for line in lines]
    assert [i for i, width in enumerate(widths, 1) if width > MAX_WIDTH] == []
    assert long_functions(parsed(path)) == []


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_named_after_what_it_holds_and_runs_no_foreign_code(path):
    assert Path(path).stem not in NAMELESS
    assert unsafe(parsed(path)) == []


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("lmpg")])
def test_what_is_public_has_a_docstring_and_a_telling_name(path):
    tree = parsed(path)
    assert undocumented(tree) == []
    assert unhelpful_names(tree) == []


def test_planted_breaches_are_found():
    long = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert long_functions(ast.parse(long)) == [f"f has {MAX_FUNCTION_LINES + 1} lines"]
    assert long_functions(ast.parse(long.removesuffix("    x = 1\n"))) == []
    bare = "class A:\n    def b(self): ...\n    def _c(self): ...\ndef d():\n    'Doc.'\n"
    assert undocumented(ast.parse(bare)) == ["the module", "A", "A.b"]
    risky = "import pickle\neval('1')\ntorch.load(p)\ntorch.load(p, weights_only=True)\nm.eval()"
    assert sorted(unsafe(ast.parse(risky))) == ["eval", "pickle", "torch.load"]
    assert unhelpful_names(ast.parse("def get_x(): ...\ndef _compute_y(): ...\ndef gets(): ..."))


@pytest.mark.parametrize("path", sorted(METHODS))
def test_a_method_is_one_short_file(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= METHODS[path]


def test_no_code_asks_which_algorithm_it_is():
    asking = re.compile(r"(algorithm|name|method)\s*(==|!=|in)\s*[\[({]?[\"'](\w+)[\"']")
    names = {path.stem for path in METHODS}
    assert {"ppo", "trpo"} < names
    for path in (ROOT / "lmpg").rglob("*.py"):
        asked = {match[3] for match in asking.finditer(path.read_text(encoding="utf-8"))}
        assert not asked & names, path


def test_the_package_has_no_more_classes_than_it_had():
    trees = [parsed(path) for path in FILES if path.startswith("lmpg")]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert len(found) <= MAX_CLASSES
