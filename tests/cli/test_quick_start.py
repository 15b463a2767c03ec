"""docs/quick_start.md: a newcomer who does what it says has a trained model at the end."""

from __future__ import annotations

import io
import re
import runpy
import sys
from pathlib import Path

import pytest

import lmpg
from lmpg.cli.command import run
from tests.support.pages import ROOT, blocks, commands
from tests.support.planted import catches
from tests.support.programs import let_go
from tests.support.tiny import tiny_model, tiny_tokenizer

PAGE = ROOT / "docs" / "quick_start.md"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, but for a tiny model under the name of the page's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # a chat ends at once
    tiny_model(max_position_embeddings=256).save_pretrained(MODEL)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(MODEL)
    return tmp_path


@catches("a file that the page's commands name and no block makes")
def test_the_page_leads_from_an_empty_folder_to_two_trained_models(place, capsys):
    done = []
    for block in blocks(PAGE):
        if block.language in ("python", "yaml"):
            name = re.match(r"# (\S+)\n", block.text)[1]
            few = re.sub(r"(total_steps\W+)20\b", r"\g<1>2", block.text)
            Path(name).write_text(re.sub(r"(size\W+)40\b", r"\g<1>2", few))
        elif not block.not_run:
            for words in commands(block):
                follow(words)
                done.append(" ".join(words[:2]))
    names = ("check", "train", "report", "evaluate", "generate", "chat")
    assert [f"lmpg {name}" for name in names if f"lmpg {name}" not in done] == []
    shown = capsys.readouterr().out
    assert "→" in shown
    for folder in ("runs/sums", "runs/sums_in_python"):
        trained = lmpg.load(folder)
        assert trained.summary["steps"] == 2
        assert len(lmpg.generate(trained, ["What is 7 plus 6?"], max_new_tokens=2)) == 1


def follow(words: list[str]) -> None:
    """One command of the page, in this process."""
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "lmpg"
    code: object = 0
    try:
        run(words[1:])
    except SystemExit as end:
        code = end.code
    finally:
        let_go()
    assert not code or (words[1], code) == ("check", 1)  # it finds a random model's faults
