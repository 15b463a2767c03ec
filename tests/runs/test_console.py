"""A console may go away, or know few letters: what is written to it is lost, never the run."""

from __future__ import annotations

import io
import logging
import os
import sys

import pytest

from lmpg.cli.main import main
from lmpg.runs.console import Lasting, lasting_console
from lmpg.runs.printable import printable
from tests.support.planted import catches


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


@catches("an arrow ends a run on a console that knows ASCII alone")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_letters_that_a_console_does_not_know_become_plain_ones(encoding):
    console = stream(encoding)
    print("0.1 → 0.2 − π 中", file=Lasting(console), flush=True)
    assert console.buffer.getvalue() == b"0.1 -> 0.2 - ? ?\n"


def broken_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="utf-8")


@catches("a closed pipe ends the run")
def test_a_reader_that_has_gone_costs_nothing_then_or_at_the_end():
    with broken_pipe() as pipe:
        console = Lasting(pipe)
        for _ in range(3):
            print("x" * 100_000, file=console, flush=True)
        os.write(pipe.fileno(), b"what a library prints, or a process that was started")
    print("it was closed", file=console, flush=True)


def test_what_a_program_prints_to_both_streams_may_be_lost(monkeypatch):
    with broken_pipe() as out, broken_pipe() as error:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", error)
        done = []

        def program():
            print("to nobody", flush=True)
            logging.getLogger("x").warning("to nobody")
            done.append(1)

        main(program)
        assert done == [1]


def test_without_any_stream_nothing_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    main(lambda: print("to nobody", flush=True))


def test_the_streams_are_those_of_before_afterwards(capsys):
    before = sys.stdout, sys.stderr
    with lasting_console(), lasting_console():
        print("heard")
        assert isinstance(sys.stdout, Lasting)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "heard\n"


@catches("escape codes of model text reach the terminal")
def test_what_steers_a_terminal_is_spelt_out():
    said = "\x1b]0;title\x07\x1b[2J\x9b31m a\rb\tc\n \u202edrow é 中"
    assert printable(said) == ("\\x1b]0;title\\x07\\x1b[2J\\x9b31m a\\rb\tc\n \\u202edrow é 中")
