"""README and docs: every command parses, every snippet runs, but for those that say why not."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import tomllib
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from lmpg.cli import asking, pipeline
from lmpg.cli.command import COMMANDS, run
from lmpg.cli.flags import given_settings, groups, read, settings_or_help, taken
from lmpg.cli.main import agent_settings, methods, settings_class, settings_of
from lmpg.language.diagnose.diagnose_settings import OveroptimisationSettings, VarianceSettings
from lmpg.language.trained.command_settings import ChatSettings, EvaluateSettings, GenerateSettings
from lmpg.runtime.processes import Processes
from lmpg.settings.raw import misplaced
from lmpg.settings.section import Problems, UserError
from lmpg.settings.yaml_files import read_yaml
from tests.support.pages import PAGES, ROOT, blocks, commands, divided, spans
from tests.support.planted import catches
from tests.support.programs import module_at

ELSEWHERE = {
    "CONTRIBUTING.md": "test_contributing.py and language/models/test_adding_a_family.py",
    "python.md": "language/api/test_python_page.py",
    "quick_start.md": "cli/test_quick_start.py",
}
"""Pages whose Python runs in tests of their own."""
OTHERS = {".", "cd", "git", "head", "hf", "make", "/tmp/peer/bin/pip", "/tmp/sb3/bin/pip"}
"""Programs that the pages call and that are not ours."""
USERS = {"train.py"}
"""Scripts that a reader writes."""
KINDS = {"evaluate": EvaluateSettings, "generate": GenerateSettings, "chat": ChatSettings}
WORDS = {"runs": 1, "compare": 99, "report": 1, "completion": 1}
"""How many words the commands take that have no settings."""
LINES = [
    pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:100])
    for page in PAGES
    if page.name != "quick_start.md"  # all of it is run
    for words in [
        *(words for block in blocks(page) for words in commands(block)),
        *(words for span in spans(page) for words in divided(span)),
    ]
]


@pytest.fixture(autouse=True)
def _without_looking_for_files(monkeypatch):
    """Models and data of the pages are not there; names and values of settings are judged alone."""
    monkeypatch.chdir(ROOT)
    for module in (pipeline, asking):
        monkeypatch.setattr(module, "refuse_missing_paths", lambda *_, **__: None)


@catches(
    "a flag of a command that was renamed",
    "a value that the flag does not take",
    "a launcher's flag with a typing error in it",
    "an extra that pyproject.toml does not have",
)
@pytest.mark.parametrize("words", LINES)
def test_every_command_of_the_pages_parses(words):
    part = words[-1] == "…"
    program, *rest = [word for word in words if word != "…"]
    if program in ("accelerate", "torchrun"):
        rest = rest[program == "accelerate" :]
        parser = launch_command_parser() if program == "accelerate" else get_args_parser()
        given, program = parser.parse_args(rest), "python"
        rest = [*(["-m"] if given.module else []), given.training_script]
        rest += given.training_script_args
    if program.startswith("python"):
        parse_python(rest)
    elif program.startswith("--"):
        assert any(understood(name, [program, *rest]) for name in methods())
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for names in re.findall(r"\[([\w,-]+)\]", " ".join(rest)):
            assert {*names.split(",")} <= {*extras["optional-dependencies"]}
    elif program != "lmpg":
        assert program in OTHERS
    else:
        parse(*(whole(rest) if part else rest))


def parse_python(words: list[str]) -> None:
    """`python -m lmpg …`, one of scripts/, or another file, which must name the flags given."""
    if words[0] == "-m":
        if words[1] == "lmpg":
            parse(*words[2:])
        else:
            assert importlib.util.find_spec(words[1])
        return
    script, *rest = words
    stem = Path(script).stem
    if not script.startswith("scripts/"):
        text = (ROOT / script).read_text(encoding="utf-8") if script not in USERS else ""
        assert [x for x in rest if x.startswith("--") and f'"{x}"' not in text] == []
    elif stem in COMMANDS:
        parse(stem, *rest)
    else:
        name = stem.removeprefix("train_")
        parse(*(("gym",) if name == "gym" else ("train", name)), *rest)


OWN = {"--model.path": "m", "--data.path": "d.jsonl", "--rewards.functions": "length"}
"""What a command of the pages may leave out where it says so by `…`, or where a run has it."""


def whole(words: list[str]) -> list[str]:
    """A command line with examples of what it needs and leaves out."""
    if not {*OWN} & {*words}:
        return words
    return [*words, *(word for flag in OWN if flag not in words for word in (flag, OWN[flag]))]


def parse(command: str = "--help", *words: str) -> None:
    """The settings of a command line as the program makes them; help is shown in full."""
    if {"--help", "-h", "--version"} & {command, *words} or (command, *words) == ("train",):
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
            run([command, *words])
        assert shown.getvalue()
        return
    assert command in COMMANDS
    settle(command, words)


def settle(command: str, words: tuple[str, ...]) -> None:
    """The settings of a command of COMMANDS; for one without settings, its words are counted."""
    if command in ("train", "check"):
        settings_of(words[0], words[1:])
    elif command == "gym":
        agent_settings(words)
    elif command == "pipeline":
        count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
        pipeline._checked(list(words[:count]), groups(words[count:]), Processes(cpu=True))
    elif command in KINDS:
        flags = asking._divided(words)[1]
        if command == "evaluate":  # some come along with a run
            flags = whole(["--model.path", "m"]) if not flags else whole(flags)
        asking.settings_for(command, KINDS[command], flags)
    elif command == "diagnose" and words[0] == "variance":
        asking.settings_for("diagnose variance", VarianceSettings, words[1:])
    elif command == "diagnose":
        line = read(words[2:])
        given = given_settings(OveroptimisationSettings, line)
        settings_or_help(OveroptimisationSettings, line, {}, given)
    else:
        left, _ = taken(list(words), "--output", Problems())
        assert len(left) <= WORDS[command]
        assert not any(word.startswith("-") for word in left)


def understood(method: str, words: list[str]) -> bool:
    """Whether flags alone, as a page lists them, are settings of a method, or of an agent."""
    agents = words[0].startswith(("--env", "--policy", "--run")) or "--algorithm.name" in words
    with contextlib.suppress(UserError):
        agent_settings(words) if agents else settings_of(method, words)
        return True
    return False


@catches("a setting of a YAML example that was renamed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_yaml_example_is_made_of_settings(page, tmp_path, monkeypatch):
    for name in ("MODELS", "DATA", "USER", "STEPS"):
        monkeypatch.setenv(name, "7")
    for block in blocks(page):
        if block.language == "yaml" and page.name not in ELSEWHERE:
            (tmp_path / "page.yaml").write_text(block.text)
            values = read_yaml(tmp_path / "page.yaml")
            kinds = [settings_class(method) for method in methods()]
            assert any(misplaced(kind, values, page.name) == [] for kind in kinds), block.text


@catches("a snippet that imports what is not there")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_snippet_runs_or_says_why_not(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in (block for block in blocks(page) if block.language == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lmpg"):
                module = importlib.import_module(str(node.module))
                assert [x.name for x in node.names if not hasattr(module, x.name)] == []
        if not block.not_run and page.name not in ELSEWHERE:
            (tmp_path / "snippet.py").write_text(block.text)
            assert module_at(tmp_path / "snippet.py")


def test_pages_whose_snippets_run_elsewhere_have_a_test_that_reads_them():
    for page, tests in ELSEWHERE.items():
        for name in tests.split(" and "):
            assert page in (ROOT / "tests" / name).read_text(encoding="utf-8")
