"""The worked example of CONTRIBUTING.md works as it is written."""

import importlib.util
import re
import sys
import textwrap

import pytest
import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.settings import presets
from tests.support.bandit import OPTIMUM, trained_probabilities
from tests.support.programs import ROOT, metrics, own_parts, run_here


def block(language: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^   ```{language}\n(.*?)^   ```", text, re.S | re.M)
    return textwrap.dedent(found)


@pytest.fixture
def algorithm(tmp_path, monkeypatch):
    """The example's class, with its line in the table and its YAML file."""
    path = tmp_path / "gpg.py"
    path.write_text(block("python"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("gpg", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpg", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(ALGORITHMS, "gpg", module.GPG)
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "gpg.yaml").write_text(block("yaml"), encoding="utf-8")
    monkeypatch.setattr(presets, "presets", lambda kind: tmp_path / kind)
    return module.GPG


def test_the_example_is_a_whole_algorithm(algorithm, tmp_path):
    assert len(block("python").splitlines()) <= 60
    parts = own_parts(tmp_path / "parts")
    output = {"run.output-dir": tmp_path / "run", "algorithm.group-size": 4}
    lines = metrics(run_here("gpg", {**parts, **output}))
    assert len(lines) == 3
    assert all(line["grad_norm"] > 0 for line in lines)


def test_the_examples_fixed_point_is_near_the_optimum_for_large_groups(algorithm):
    found = trained_probabilities(algorithm(kl_coef=1.0, kl_in="loss", group_size=64))
    torch.testing.assert_close(found, OPTIMUM, atol=0.02, rtol=0)
