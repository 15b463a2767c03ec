"""What `model.precision auto` chooses."""

import logging

import pytest
import torch

from lmpg.language.models import precision
from lmpg.language.models.precision import computes_in_bf16, fast_bf16


class Large(torch.nn.Module):
    """As many parameters as it takes, without the memory."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(1000, 1000, device="meta"))


@pytest.mark.parametrize(
    ("fast", "model", "expected"),
    [(True, Large(), True), (False, Large(), False), (True, torch.nn.Linear(9, 9), False)],
)
def test_auto_takes_bfloat16_where_it_is_fast_and_pays_and_says_so(
    fast, model, expected, monkeypatch, caplog
):
    monkeypatch.setattr(precision, "fast_bf16", lambda device: fast)
    with caplog.at_level(logging.WARNING):
        assert computes_in_bf16("auto", model, "cpu") is expected
    assert f"auto is {'bf16' if expected else 'fp32'}" in caplog.text


def test_what_the_user_asks_for_is_not_argued_with(caplog):
    assert computes_in_bf16("bf16", torch.nn.Linear(9, 9), "cpu")
    assert not computes_in_bf16("fp32", Large(), "cpu")
    assert caplog.text == ""


def test_a_torch_that_cannot_tell_counts_as_slow(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not fast_bf16(torch.device("cpu"))
    assert not fast_bf16(torch.device("meta"))
