"""The model family that CONTRIBUTING.md adds as an example is trained and sampled exactly."""

import re

import pytest
import torch
import transformers

from lmpg.language.models import architectures
from lmpg.language.models.forward import response_states
from tests.language.models.test_architectures import (
    OWN,
    SHARED,
    assert_evaluated_as_by_transformers,
    assert_sampled_as_by_transformers,
    assert_trained_as_by_transformers,
)
from tests.support.families import policy_of, tiny_of
from tests.support.programs import ROOT, module_at
from tests.support.recorded_graphs import RecordedGraphs


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A tiny Starcoder2, with the example's reader in the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Adding a model family\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)
    assert len(example.splitlines()) <= 20
    path = tmp_path / "example.py"
    path.write_text(f"from {architectures.__name__} import *\n\n{example}", encoding="utf-8")
    module = module_at(path)
    ((family, reader),) = re.findall(r"`tf\.(\w+): (\w+),` in `READERS`", section)
    readers, trunk = architectures.READERS, getattr(transformers, family)
    monkeypatch.setitem(readers, trunk, getattr(module, reader))
    return tiny_of("Starcoder2", sliding_window=5)


def test_the_example_is_trained_as_by_transformers(model, monkeypatch):
    with monkeypatch.context() as trusted:
        trusted.setattr(response_states, "_agrees", lambda *_: True)
        for inputs in (OWN, SHARED):
            assert_trained_as_by_transformers(model, inputs)
    assert_evaluated_as_by_transformers(policy_of(model), OWN)


@torch.no_grad()
def test_the_example_is_sampled_as_by_transformers(model, monkeypatch):
    for capture in (None, RecordedGraphs()):
        assert_sampled_as_by_transformers(policy_of(model), monkeypatch, capture)


def test_without_its_reader_it_is_left_to_transformers():
    assert "Starcoder2Model is none of" in architectures.unsupported(tiny_of("Starcoder2"), 9)
