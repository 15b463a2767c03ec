"""Shells complete commands, names and flags."""

from __future__ import annotations

import subprocess

import pytest

from lmpg.cli.command import COMMANDS, run
from lmpg.settings.section import UserError

TRY = """
{script}
function="$(complete -p lmpg | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
COMP_WORDS=({words} {last}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
"$function" lmpg {last}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script():
    """What `lmpg completion bash` prints."""
    pytest.importorskip("shtab")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", printed.append)
        run(["completion", "bash"])
    return printed[0]


@pytest.mark.parametrize(
    ("words", "last", "found"),
    [
        ("lmpg", "tr", {"train"}),
        ("lmpg", "''", {*COMMANDS}),
        ("lmpg train", "dap", {"dapo"}),
        ("lmpg pipeline sft", "rew", {"reward_model"}),
        ("lmpg train grpo", "--update.learn", {"--update.learning-rate"}),
        ("lmpg train grpo --update.schedule", "c", {"constant", "cosine"}),
        ("lmpg check", "dap", {"dapo"}),
        ("lmpg check grpo", "--update.learn", {"--update.learning-rate"}),
        ("lmpg chat", "--show", {"--show-special"}),
        ("lmpg generate", "--batch", {"--batch-size"}),
        ("lmpg gym", "--env.num", {"--env.num-envs"}),
        ("lmpg gym --algorithm.name", "trp", {"trpo"}),
        ("lmpg train grpo --run.resume", "T", {"True"}),
    ],
)
def test_bash_completes_words(script, words, last, found):
    text = TRY.format(script=script, words=words, last=last)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == found


def test_completion_says_how_it_is_used_and_what_it_needs(monkeypatch, capsys):
    run(["completion", "--help"])
    assert "bash-completion/completions/lmpg" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected one of bash, zsh, tcsh after completion"):
        run(["completion", "powershell"])
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    with pytest.raises(UserError, match="needs the package shtab; install it: pip install shtab"):
        run(["completion", "zsh"])
