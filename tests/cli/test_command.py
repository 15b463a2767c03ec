"""`lmpg COMMAND`: what there is, and what it says where nothing fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lmpg import __version__
from lmpg.cli.command import COMMANDS, run
from lmpg.settings.by_name import ByName
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.programs import ROOT


def test_every_command_is_there_and_stands_in_a_screen_of_help(capsys):
    run(["--help"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 100
    for name, row in COMMANDS.items():
        assert callable(ByName({name: row.place})[name])
        assert any(line.startswith(f"  {name} ") and row.does in line for line in shown)


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["version"]])
def test_the_version_is_told(words, capsys):
    run(words)
    assert capsys.readouterr().out == f"lmpg {__version__}\n"


def test_an_unknown_command_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"unknown command 'trian'; did you mean train\? expected"):
        run(["trian"])


def test_a_method_without_train_in_front_is_answered_with_the_whole_command():
    with pytest.raises(UserError, match=r"'grpo'; did you mean lmpg train grpo\? expected one of"):
        run(["grpo"])


def test_help_in_front_of_a_command_is_its_help(capsys):
    for words in (["help", "report"], ["report", "--help"]):
        run(words)
    first, second = capsys.readouterr().out.split("usage: lmpg report FOLDER")[1:]
    assert first == second


def test_the_names_of_all_methods_stand_in_a_screen(capsys):
    run(["train", "--help"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 100


def test_a_report_is_written_again_and_other_folders_are_refused(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("run: {}\n")
    row = {"step": 1, "reward": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    run(["report", str(tmp_path)])
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert "<html" in (tmp_path / "report.html").read_text()
    with pytest.raises(UserError, match=r"holds no run \(config.yaml is missing\)"):
        run(["report", str(tmp_path / "nowhere")])
    for words in ([], ["a", "b"], ["--run.seed"]):
        with pytest.raises(UserError, match="expected the folder of one run"):
            run(["report", *words])
    run(["report", "--help"])
    assert capsys.readouterr().out.startswith("usage: lmpg report")


@catches("a traceback where the reader of the output has gone")
@pytest.mark.parametrize(
    ("line", "unbuffered"),
    [("--help", ""), ("--help", "1"), ("nonsense", ""), ("train sft --help all", "")],
)
def test_output_that_nobody_reads_ends_nothing(line, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    program = [sys.executable, "-m", "lmpg", *line.split()]
    refused = line == "nonsense"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    streams |= {"stderr" if refused else "stdout": writer}
    done = subprocess.run(program, env=env, text=True, **streams)
    os.close(writer)
    assert done.returncode == 2 * refused
    assert not done.stdout
    assert not done.stderr
