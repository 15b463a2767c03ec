"""How soon the command line answers: what it loads before it does."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("torch", "transformers", "datasets", "accelerate", "gymnasium")
LOADED = """
import sys
from lmpg.cli.command import entry
sys.argv = ["lmpg", *sys.argv[1:]]
try:
    entry()
except SystemExit:
    pass
print("loaded:", *(name for name in {slow} if name in sys.modules))
"""
OWN = "--model.path /no/model --data.path /no/data.jsonl --rewards.functions length"


@pytest.mark.parametrize(
    ("line", "loaded"),
    [
        ("--help", []),
        ("train grpo --update.learning-rate -1", ["torch"]),
        (f"train grpo {OWN}", ["torch"]),
    ],
)
def test_help_and_refusals_load_no_library_that_they_do_not_need(line, loaded):
    program = [sys.executable, "-c", LOADED.format(slow=SLOW), *line.split()]
    shown = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1].split()[1:] == loaded
