"""What `model.precision auto` chooses."""

import pytest
import torch

from lmpg.language.models import precision
from lmpg.language.models.architectures import probe_ids
from lmpg.language.models.head import refuse_unknown_head
from lmpg.language.models.packing_check import refuse_unpackable
from lmpg.language.models.precision import computes_in_bf16, fast_bf16
from lmpg.language.sampling.sampler import Sampler
from lmpg.settings.section import UserError
from tests.support.planted import catches
from tests.support.tiny import deep_policy


class Large(torch.nn.Module):
    """As many parameters as it takes, without the memory."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(1000, 1000, device="meta"))


@pytest.mark.parametrize(
    ("fast", "model", "device", "expected"),
    [
        (True, Large(), "cpu", True),
        (False, Large(), "cpu", False),
        (True, torch.nn.Linear(9, 9), "cpu", False),
        (True, torch.nn.Linear(9, 9), "cuda", True),
        (False, Large(), "mps", False),
    ],
)
def test_auto_takes_bfloat16_where_it_is_fast_and_pays(fast, model, device, expected, monkeypatch):
    monkeypatch.setattr(precision, "fast_bf16", lambda device: fast)
    assert computes_in_bf16("auto", model, device) is expected


def test_what_the_user_asks_for_is_not_argued_with():
    assert computes_in_bf16("bf16", torch.nn.Linear(9, 9), "cpu")
    assert not computes_in_bf16("fp32", Large(), "cpu")


def test_a_torch_that_cannot_tell_counts_as_slow(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not fast_bf16(torch.device("cpu"))
    assert not fast_bf16(torch.device("meta"))


@catches(
    "bf16 log-probs of unlikely tokens held against a fixed number of nats",
    "an engine's hidden states in bf16 held against a fixed share",
)
def test_a_deep_model_with_a_large_vocabulary_passes_every_probe_in_bf16():
    policy = deep_policy()
    ids, lengths = probe_ids(policy.causal_lm, 1, 8), torch.tensor([4])
    inputs = {"prompt_ids": ids[:, :4], "prompt_lengths": lengths}
    inputs |= {"response_ids": ids[:, 4:], "response_lengths": lengths}
    with torch.no_grad():
        found = policy.evaluate(inputs).logprobs_BT
    assert float((found - policy.plain_logprobs(inputs)).abs().max()) > 0.1
    refuse_unknown_head(policy)
    refuse_unpackable(policy)
    sampler = Sampler(policy, 4)
    sampler.sample([[5, 6, 7]], 1, None)
    assert sampler.backend == "by the CPU engine"
    assert policy.bf16


@catches("what bf16 rounds away hides an unknown head")
def test_an_unknown_head_is_refused_in_bf16_though_it_changes_less_than_rounding(monkeypatch):
    policy = deep_policy()
    forward = type(policy.causal_lm).forward

    def changed(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 1.001
        return output

    monkeypatch.setattr(type(policy.causal_lm), "forward", changed)
    with pytest.raises(UserError, match="changes hidden states before"):
        refuse_unknown_head(policy)


def test_a_probe_in_float32_leaves_everything_as_it_was():
    policy = deep_policy()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16), policy.in_float32():
            assert not torch.is_autocast_enabled("cpu")
            assert torch.get_float32_matmul_precision() == "highest"
            assert not policy.bf16
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(ZeroDivisionError), policy.in_float32():
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == "high"
        assert policy.bf16
    finally:
        torch.set_float32_matmul_precision("highest")
