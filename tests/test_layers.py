"""Imports point down: each layer knows only what lies below it, and never what it must not see."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lmpg"
FOUNDATION = {"functional", "sections"}
SIBLINGS = {"algorithms", "models", "data", "tasks"}
MIDDLE = SIBLINGS | {"rewards", "sampling", "environments"}
TOP = FOUNDATION | {"types", "classic", "training", "recipes", "values"} | MIDDLE
MAY_IMPORT = {  # layer: the other parts of lmpg that it may import
    "functional": set(),
    "sections": set(),
    "types": FOUNDATION,
    "algorithms": FOUNDATION | {"types"},
    "models": FOUNDATION | {"types"},
    "data": FOUNDATION | {"types"},
    "tasks": FOUNDATION | {"types"},
    "rewards": FOUNDATION | {"types", "models", "data"},
    "sampling": FOUNDATION | {"types", "models"},
    "environments": FOUNDATION | {"types", "models"},
    "classic": FOUNDATION | {"types", "models", "environments"},
    "training": FOUNDATION | {"types", "classic"} | MIDDLE,
    "recipes": FOUNDATION | {"types", "training"} | MIDDLE,
    "values": {"sections"},
    "presets": {"sections", "values"},
    "config": FOUNDATION | {"types", "training", "recipes"} | MIDDLE,
    "config_gym": TOP | {"config"},
    "cli": TOP | {"config"},
    "train_language": TOP | {"config", "cli"},
    "stages": TOP | {"config"},
    "train_offline": TOP | {"config", "cli", "stages"},
    "train_gym": TOP | {"config", "config_gym", "cli"},
    "gym": TOP | {"presets", "train_gym"},
    "train": TOP | {"config", "presets", "stages", "train_language", "train_offline"},
    "pipeline": TOP | {"cli", "presets", "stages", "train"},
    "command": TOP | {"cli", "pipeline", "presets", "stages", "train"},
}
LANGUAGE_MODELS = {"transformers", "peft", "tokenizers", "datasets"}
COMMAND_LINE = {"argparse", "tyro", "yaml"}
NEVER_SEES = {  # layer: packages that it must not import
    "functional": LANGUAGE_MODELS | COMMAND_LINE | {"accelerate", "gymnasium", "pydantic"},
    "sections": LANGUAGE_MODELS | COMMAND_LINE | {"torch"},
    "types": LANGUAGE_MODELS | COMMAND_LINE | {"accelerate", "gymnasium"},
    "algorithms": LANGUAGE_MODELS | COMMAND_LINE | {"accelerate", "gymnasium"},
    "models": COMMAND_LINE | {"datasets"},
    "data": COMMAND_LINE | {"gymnasium"},
    "tasks": LANGUAGE_MODELS | COMMAND_LINE | {"torch"},
    "rewards": COMMAND_LINE | {"gymnasium"},
    "sampling": COMMAND_LINE | {"gymnasium"},
    "environments": LANGUAGE_MODELS | COMMAND_LINE,
    "classic": LANGUAGE_MODELS | COMMAND_LINE,
    "training": COMMAND_LINE,
    "recipes": COMMAND_LINE,
}
EXCEPTIONS = {("training/run_folder.py", "yaml")}  # it writes config.yaml and compares with it


def imported(source: str) -> set[str]:
    """Dotted names of everything a source file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at `path` (relative to the package)."""
    layer = path.split("/")[0].removesuffix(".py")
    if layer == "__init__":
        return []
    wrong = []
    for name in sorted(imported(source)):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if name.startswith("."):
            wrong.append(f"{path}: relative import {name}; write lmpg.…")
        elif top == "lmpg" and other not in {"__version__", layer, *MAY_IMPORT[layer]}:
            wrong.append(f"{path}: {layer} must not import {name}")
        elif top == "lmpg" and path.endswith("/settings.py") and other != "sections":
            wrong.append(f"{path}: settings import lmpg.settings.section alone, not {name}")
        elif top in NEVER_SEES.get(layer, ()) and (path, top) not in EXCEPTIONS:
            wrong.append(f"{path}: {layer} never sees {top}")
    return wrong


FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_imports_point_down(path):
    assert violations(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


def test_every_part_of_the_package_has_its_place_among_the_layers():
    parts = {path.split("/")[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert parts <= MAY_IMPORT.keys()


def test_the_layers_form_no_circle():
    done: set[str] = set()
    while ready := {layer for layer in MAY_IMPORT.keys() - done if MAY_IMPORT[layer] <= done}:
        done |= ready
    assert done == MAY_IMPORT.keys()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("algorithms/ppo.py", "from lmpg.training.update import Updater"),
        ("algorithms/ppo.py", "import lmpg.language.models.policy"),
        ("algorithms/ppo.py", "from lmpg import cli"),
        ("models/policy.py", "def f():\n    from lmpg.language.data.prompts import Prompt"),
        ("functional/kl.py", "from lmpg.types import Rollout"),
        ("sampling/sampler.py", "from lmpg.algorithms.ppo import PPO"),
        ("recipes/reviews.py", "from lmpg.language.settings import LanguageSettings"),
        ("models/settings.py", "from lmpg.types import Rollout"),
        ("algorithms/ppo.py", "import transformers"),
        ("tasks/reviews.py", "import torch.nn as nn"),
        ("training/online.py", "import argparse"),
        ("training/online.py", "from yaml import safe_load"),
        ("training/online.py", "from .update import Updater"),
    ],
)
def test_a_planted_arrow_that_points_up_is_found(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training/online.py", "from lmpg.training.update import Updater"),
        ("training/run_folder.py", "import yaml"),
        (
            "rewards/scorer.py",
            "from lmpg.language.models.sequence_classifier import SequenceScorer",
        ),
        ("config.py", "import yaml\nfrom lmpg.algorithms import ALGORITHMS"),
        ("cli.py", "from lmpg import config"),
    ],
)
def test_an_arrow_that_points_down_is_allowed(path, source):
    assert violations(path, source) == []
