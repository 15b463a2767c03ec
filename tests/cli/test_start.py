"""How soon the command line answers: what it loads before it does."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("torch", "transformers", "datasets", "accelerate", "gymnasium", "tyro")
LOADED = """
import gc, sys
from lmpg.cli.command import entry
sys.argv = ["lmpg", *sys.argv[1:]]
try:
    entry()
except SystemExit:
    pass
print("frozen:", gc.get_freeze_count() > 100_000, gc.isenabled())
print("loaded:", *(name for name in {slow} if name in sys.modules))
"""
OWN = "--model.path /no/model --data.path /no/data.jsonl --rewards.functions length"


@pytest.mark.parametrize(
    ("line", "loaded"),
    [
        ("--help", []),
        ("train --help", []),
        ("train grpo --update.learning-rate -1", ["torch"]),
        (f"train grpo {OWN}", ["torch"]),
        (f"check grpo {OWN}", ["torch"]),
        (f"evaluate {OWN}", []),
        ("generate x --model.path /no/model", []),
        ("chat --model.path /no/model", []),
        (f"diagnose variance {OWN}", []),
        ("diagnose overoptimisation /no/run --gold x", []),
        ("runs /no/folder", []),
        ("report /no/run", []),
        (f"pipeline sft grpo {OWN}", ["torch", "accelerate"]),
    ],
)
def test_help_and_refusals_load_no_library_that_they_do_not_need(line, loaded):
    program = [sys.executable, "-c", LOADED.format(slow=SLOW), *line.split()]
    shown = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1].split()[1:] == loaded
    # nor does the garbage collector go through what they do need
    assert shown.splitlines()[-2].split()[1:] == [str("torch" in loaded), "True"]


def test_the_settings_of_one_method_are_made_without_those_of_the_others():
    program = (
        "import sys\nfrom lmpg.cli.main import settings_of\nsettings_of('rloo', [])\n"
        "print(*(name for name in sys.modules if name.startswith('lmpg.algorithms.')))"
    )
    run = [sys.executable, "-c", program]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert "lmpg.algorithms.rloo" in loaded
    assert not {"lmpg.algorithms.ppo", "lmpg.algorithms.fixed_data.dpo"} & {*loaded}
