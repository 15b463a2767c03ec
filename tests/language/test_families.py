"""Families of transformers: a tiny model of each trains and resumes, or is refused, as its row in
docs/models.md says."""

from __future__ import annotations

import os

import pytest

from tests.support.causal_families import FAMILIES, UNTRIED
from tests.support.family_runs import PAGE, documented, tables, tried

ALL = os.environ.get("LMPG_FAMILIES") == "all"
FEW = {
    "rwkv": "fp32",
    "recurrent_gemma": "bf16",
    "mamba": "fp32",
    "llama4_text": "bf16",
    "minimax": "fp32",
    "qwen3_next": "bf16",
    "deepseek_v3": "bf16",
    "trocr": "bf16",
    "dbrx": "bf16",
}
"""State spaces, linear attention beside other attention, compressed keys, experts, chunks, learned
positions; and one that is refused in this precision."""
WANTED = [(kind, p) for kind in FAMILIES if kind not in UNTRIED for p in ("fp32", "bf16")]


@pytest.mark.parametrize(("kind", "precision"), WANTED if ALL else FEW.items())
@pytest.mark.filterwarnings("ignore")
def test_a_family_trains_and_resumes_or_is_refused_as_its_row_says(kind, precision, tmp_path):
    found, cells = tried(kind, precision, tmp_path), documented()[kind]
    if len(cells) > 1 and precision in cells[2]:
        assert [found.engine, found.together] == cells[:2]
    elif precision == "fp32":
        assert found.refused == cells[0]
    else:  # bf16 may fail sooner
        assert found.refused


ADAPTED = [kind for kind, cells in documented().items() if len(cells) > 1]


@pytest.mark.parametrize("kind", ADAPTED if ALL else ["mixtral"])
@pytest.mark.filterwarnings("ignore")
def test_a_family_that_is_trained_is_trained_by_adapters_too(kind, tmp_path):
    assert not tried(kind, "fp32", tmp_path, **{"model.lora.rank": 2}).refused


def test_every_family_of_transformers_has_one_row():
    rows = documented()
    assert sorted(rows) == sorted(FAMILIES)
    assert {kind: cells[0] for kind, cells in rows.items() if kind in UNTRIED} == UNTRIED
    shown = {kind: cells for kind, cells in rows.items() if kind not in UNTRIED}
    assert PAGE.read_text(encoding="utf-8").endswith(tables(shown))
    trained = [kind for kind, cells in shown.items() if cells[-1] == "fp32, bf16"]
    assert len(trained) >= 60
