"""Every command of docs/evaluation.md runs as it stands there, on tiny parts."""

from __future__ import annotations

import glob
import io
import json
import re
import shlex
import sys

import pytest

from lmpg.cli.command import run
from lmpg.cli.main import train_by_name
from tests.support.planted import catches
from tests.support.programs import ROOT, words
from tests.support.tiny import tiny_model, tiny_tokenizer

PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def commands() -> list[str]:
    """The command lines in the page's shell blocks, without their comments."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in blocks.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which all names of the page stand for something."""
    folder = tmp_path_factory.mktemp("page")
    model = folder / "my-org" / "my-model"
    tiny_model(max_position_embeddings=512).save_pretrained(model)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    sums = [{"question": f"{i}+{i}=", "answer": f"#### {2 * i}"} for i in range(10, 16)]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums[:2]))
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    (folder / "prompts.jsonl").write_text('{"prompt": "abc"}\n')
    (folder / "prompts.txt").write_text("abc\n")
    flags = {
        "model.path": model,
        "data.path": folder / "sums.jsonl",
        "data.prompt-column": "question",
        "rewards.functions": "numeric_answer",
        "sampling.max-new-tokens": 3,
        "update.rollout-size": 8,
        "update.minibatch-size": 8,
        "run.total-steps": 2,
        "run.report-every": 0,
        "evaluation.size": 2,
    }
    for name in ("grpo", "ppo"):
        run_folder = folder / "runs" / f"{name}-20250131-120000"
        train_by_name(name, words({**flags, "run.output-dir": run_folder}))
    return folder


@catches("a flag of the page by another name")
@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_page_runs(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    line, _, output = line.partition(" > ")
    line, _, source = line.partition(" < ")
    typed = (place / source).read_text() if source else ""
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))  # a chat ends at once
    program, *rest = shlex.split(line.replace("$MODEL", "my-org/my-model"))
    assert program == "lmpg"
    run([name for word in rest for name in (glob.glob(word) if "*" in word else [word])])
    shown = capsys.readouterr().out
    assert shown
    assert not output or json.loads(shown.splitlines()[-1])["prompt"] == "abc"


def test_the_page_names_every_flag_of_the_commands():
    from lmpg.language.trained import command_settings as settings

    for kind in (settings.EvaluateSettings, settings.GenerateSettings, settings.ChatSettings):
        flags = [name for name in kind.model_fields if name not in ("model", "data", "rewards")]
        own = [name for name in flags if name not in ("sampling", "seed", "torch_threads")]
        assert [x for x in own if f"--{x.replace('_', '-')}" not in PAGE] == []
