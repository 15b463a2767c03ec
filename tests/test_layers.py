"""Imports point down: each layer imports what its row of the table names, and nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tests.support.planted import catches

PACKAGE = Path(__file__).parent.parent / "lmpg"
GROUND = "functional settings types runtime"
SHARED = f"{GROUND} algorithms runs training"
LAYERS = {  # folder or module: (the layers it imports, the packages of others that it imports)
    "functional": ("", "torch"),
    "settings": ("", "pydantic yaml"),
    "types": ("functional", "torch"),
    "runtime": ("settings", "accelerate numpy psutil torch"),
    "algorithms": ("functional settings types", "pydantic torch"),
    "runs": (
        "settings runtime algorithms",
        "accelerate aim comet_ml huggingface_hub mlflow numpy pandas pydantic safetensors swanlab "
        "torch tqdm trackio wandb yaml",
    ),
    "training": (f"{GROUND} algorithms runs", "bitsandbytes numpy pydantic torch transformers"),
    "language/data": ("settings runtime", "datasets numpy pydantic reasoning_gym"),
    "language/models": (
        GROUND,
        "bitsandbytes peft pydantic safetensors torch transformers",
    ),
    "language/sampling": (f"{GROUND} models", "pydantic safetensors torch transformers"),
    "language/rewards": ("settings data models", "math_verify pydantic reasoning_gym transformers"),
    "language/environments": (
        "settings data rewards",
        "gymnasium openenv pydantic textarena transformers verifiers",
    ),
    "language/rollouts": (
        f"{SHARED} data models sampling rewards language/environments",
        "torch",
    ),
    "language/objectives": (f"{SHARED} data models", "torch"),
    "language/worlds": (
        f"{SHARED} data models sampling objectives",
        "tokenizers torch transformers",
    ),
    "language/stages": (
        f"{SHARED} data models sampling rollouts objectives worlds",
        "pydantic torch",
    ),
    "language": (
        f"{SHARED} data models sampling rewards language/environments rollouts worlds stages",
        "pydantic torch yaml",
    ),
    "gym/networks": ("functional settings types", "numpy pydantic safetensors torch"),
    "gym/environments": ("settings types networks", "gymnasium numpy pydantic torch"),
    "gym": (f"{SHARED} networks environments", "gymnasium numpy pydantic torch"),
    "cli": (f"{SHARED} worlds stages language gym", "pydantic shtab torch tyro yaml"),
}
CALLED = {layer.rpartition("/")[2]: layer for layer in LAYERS} | {layer: layer for layer in LAYERS}
COMMAND_LINE = {"argparse", "getopt", "optparse"}  # Python's own, and for `cli` alone
MOST_MODULES = 16
SHARED_NAMES = {
    "settings",
    "program",
    "rollouts",
    "environments",
}  # both wings have these
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def layer_of(path: str) -> str | None:
    """The row of the table that a path below the package belongs to: the longest that fits."""
    parts = path.removesuffix(".py").split("/")
    fitting = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((layer for layer in fitting if layer in LAYERS), None)


def below(layer: str) -> set[str]:
    """The layers that the table lets a layer import."""
    return {CALLED[name] for name in LAYERS[layer][0].split()}


def imported(source: str) -> list[str]:
    """Dotted names of everything a source imports, inside functions too, and `sys.argv`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv":
            names.add("sys.argv")
    return sorted(names)


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at `path`, below the package."""
    layer = layer_of(path)
    if layer is None:
        return (
            []
            if path in ("__init__.py", "__main__.py")
            else [f"{path}: no row of the table holds it"]
        )
    return [f"{path}: {wrong}" for name in imported(source) if (wrong := fault(path, layer, name))]


def fault(path: str, layer: str, name: str) -> str | None:
    """Why a file must not import a name, None where it may."""
    top, _, rest = name.partition(".")
    if not top:
        return f"relative import {name}; write lmpg.…"
    if top == "lmpg":
        other = layer_of(rest.replace(".", "/"))
        if name != "lmpg.__version__" and other not in {layer, *below(layer)}:
            return f"{layer} must not import {name}"
        if is_section(path) and other != "settings":
            return f"the settings of one room import lmpg.settings alone, not {name}"
    elif name == "sys.argv" or top in COMMAND_LINE:
        return None if layer == "cli" else f"the command line is for cli, not {name}"
    elif top not in sys.stdlib_module_names and top not in LAYERS[layer][1].split():
        return f"{layer} never sees {top}"
    return None


def is_section(path: str) -> bool:
    """Whether a file holds a room's own settings: beside a program they put sections together."""
    folder, _, name = path.rpartition("/")
    return name == "settings.py" and f"{folder}/program.py" not in FILES


@pytest.mark.parametrize("path", FILES)
def test_imports_point_down(path):
    assert violations(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


def test_the_table_is_short_and_every_row_holds_a_module():
    assert len(LAYERS) <= 21
    assert {layer_of(path) for path in FILES} - {None} == LAYERS.keys()


@catches("a row of the table that closes a circle, or through which a wing sees the other")
def test_the_layers_form_no_circle_and_the_wings_never_see_each_other():
    reached: dict[str, set[str]] = {}
    while ready := {layer for layer in LAYERS.keys() - reached if below(layer) <= reached.keys()}:
        for layer in ready:
            reached[layer] = below(layer).union(*(reached[other] for other in below(layer)))
    assert reached.keys() == LAYERS.keys()
    for layer, others in reached.items():
        wings = {name.split("/")[0] for name in {layer, *others}} & {"language", "gym"}
        assert len(wings) <= 1 or layer == "cli", layer
    assert not {name for name in reached["training"] if name.startswith(("language", "gym"))}


def test_no_folder_is_crowded_and_no_two_modules_bear_the_same_name():
    modules = [path for path in FILES if not path.endswith("__init__.py")]
    folders = {path.removesuffix("/__init__.py") for path in FILES if "/" in path} - {*modules}
    crowd = Counter(path.rpartition("/")[0] for path in modules)
    assert [folder for folder, held in crowd.items() if held > MOST_MODULES] == []
    names = Counter(Path(path).stem for path in [*modules, *folders])
    assert [name for name, held in names.items() if held > 1 and name not in SHARED_NAMES] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("functional/kl.py", "from lmpg.types import Rollout"),
        ("functional/kl.py", "import transformers"),
        ("settings/raw.py", "import torch.nn as nn"),
        ("algorithms/ppo.py", "from lmpg.training.update import Updater"),
        ("algorithms/ppo.py", "import lmpg.language.models.policy"),
        ("algorithms/ppo.py", "from lmpg import cli"),
        ("algorithms/ppo.py", "import lmpg"),
        ("training/update.py", "from lmpg.language.models.policy import CausalLMPolicy"),
        ("training/online.py", "from lmpg import gym"),
        ("training/online.py", "import argparse"),
        ("training/online.py", "import tyro"),
        ("training/online.py", "from .update import Updater"),
        ("training/settings.py", "from lmpg.types import Rollout"),
        (
            "language/models/policy.py",
            "def f():\n    from lmpg.language.data.prompts import Prompt",
        ),
        ("language/sampling/sampler.py", "from lmpg.language import rewards"),
        ("language/rewards/settings.py", "from lmpg.language.models.settings import ModelSettings"),
        ("language/objectives/dpo_objective.py", "from lmpg.language.rollouts import metrics"),
        ("language/worlds/reviews.py", "from lmpg.language.settings import LanguageSettings"),
        ("language/program.py", "from lmpg.gym.environments.make import make"),
        ("language/program.py", "from lmpg.cli.flags import parse"),
        ("language/program.py", "import sys\nf = sys.argv[1]"),
        ("language/program.py", "from sys import argv"),
        ("gym/program.py", "from lmpg.language.settings import DataSettings"),
        ("gym/classic/trpo.py", "import transformers"),
        ("gym/environments/make.py", "from lmpg.gym.rollouts import GymSource"),
        ("extra/thing.py", "import torch"),
    ],
)
def test_a_planted_arrow_that_points_up_is_found(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training/online.py", "from lmpg.training.update import Updater"),
        ("runs/folder.py", "import yaml\nfrom lmpg import __version__"),
        ("language/rewards/reward_model.py", "from lmpg.language.models import policy"),
        ("language/settings.py", "from lmpg.language.data.settings import DataSettings"),
        ("gym/classic/trpo.py", "from lmpg.gym.networks.parameters import flat"),
        ("cli/main.py", "import argparse, sys\nsys.argv[1:]\nfrom lmpg.gym.program import run"),
    ],
)
def test_an_arrow_that_points_down_is_allowed(path, source):
    assert violations(path, source) == []


@catches("psutil imported and not declared")
def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    users = [
        *project["dependencies"],
        *(x for name in extras if name != "dev" for x in extras[name]),
    ]
    declared = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in users}
    seen = {name for _, names in LAYERS.values() for name in names.split()}
    assert {{"yaml": "pyyaml"}.get(name, name) for name in seen} <= declared
