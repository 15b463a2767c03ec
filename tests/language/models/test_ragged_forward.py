"""The lean forward over ragged batches against transformers' own, padded."""

import pytest
import torch
from transformers import MistralConfig, MistralModel, Qwen3Config, Qwen3Model

from lmpg.language.models.forward import ops
from lmpg.language.models.forward import response_states as states
from lmpg.language.models.forward.decoder import lean_forward
from lmpg.language.models.forward.ragged import Ragged, _block_sizes
from lmpg.language.models.forward.response_states import response_states
from lmpg.language.models.inputs import language_inputs
from tests.support.planted import catches
from tests.support.tiny import PAD, VOCABULARY, tiny_model

KINDS = ["llama", "qwen2", "gpt2", "qwen3", "mistral"]
PROMPTS = [[5, 6, 7], [9], [4, 4, 8, 12, 30, 31, 2, 17, 18], [11, PAD, 3, 9]]
RESPONSES = [[10, 11, 1], [PAD, 1, PAD, 14, 15, 16], [13], [], [20, 21, 22, 23], [7] * 11]
OWN = language_inputs([[*PROMPTS[i % 4], i] for i in range(6)], RESPONSES, PAD)
SHARED = language_inputs([PROMPTS[i // 6] for i in range(24)], RESPONSES * 4, PAD)


def trunk_of(kind):
    if kind not in ("qwen3", "mistral"):
        return tiny_model(kind).base_model
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 8, "initializer_range": 0.15, "pad_token_id": PAD}
    if kind == "qwen3":
        trunk = Qwen3Model(Qwen3Config(**sizes))
        for layer in trunk.layers:
            torch.nn.init.normal_(layer.self_attn.q_norm.weight)
        return trunk.eval()
    return MistralModel(MistralConfig(**sizes)).eval()


def padded(trunk, inputs, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(states, "lean_forward", lambda trunk, inputs: None)
        return response_states(trunk, inputs)


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    """Otherwise a lean trunk that errs is not used, and nobody sees that it does."""
    monkeypatch.setattr(states, "_agrees", lambda *_: True)


def gradients(trunk, hidden):
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((hidden.float() * weights).sum(), list(trunk.parameters()))


ATTENTION = {
    "plain": {},
    "in blocks of queries": {"_MANY_SCORES": 0, "_QUERIES_AT_ONCE": 2},
    "fused": {"_PLAIN_UP_TO": {}},
}


@catches(
    "padding of a shared prompt attended to",
    "responses that share prompts go on from another row's prompt",
    "positions of responses that share a prompt start at 0",
    "queries of attention not scaled",
    "the gradient of rotary positions rotated the same way as the forward",
    "the gradient of a gated layer by its gate's input instead of its activation",
    "padding before a block of queries attended to",
    "a query's block lacks its own key",
)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("inputs", [OWN, SHARED])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_gradients_are_those_of_transformers(
    kind, inputs, attention, monkeypatch
):
    trunk = trunk_of(kind)
    assert lean_forward(trunk, inputs) is not None
    for name, value in ATTENTION[attention].items():
        monkeypatch.setattr(ops, name, value)
    lean, expected = response_states(trunk, inputs), padded(trunk, inputs, monkeypatch)
    assert torch.equal(lean.ids_N, expected.ids_N)
    assert torch.equal(lean.slots_N, expected.slots_N)
    torch.testing.assert_close(lean.hidden_ND, expected.hidden_ND, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(trunk, lean.hidden_ND), gradients(trunk, expected.hidden_ND)
    for found, wanted in zip(ours, theirs):
        scale = float(wanted.abs().max().clamp(min=1))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_near_to_float32_as_that_of_transformers(kind, monkeypatch):
    trunk = trunk_of(kind)
    exact = response_states(trunk, SHARED).hidden_ND
    with torch.autocast("cpu", torch.bfloat16):
        lean = response_states(trunk, SHARED).hidden_ND
        theirs = padded(trunk, SHARED, monkeypatch).hidden_ND
    assert lean.dtype == exact.dtype
    assert (lean - exact).norm() <= 1.2 * (theirs - exact).norm()


def test_padding_is_not_read_whatever_it_holds():
    trunk = trunk_of("gpt2")
    junk = {**SHARED, "prompt_ids": SHARED["prompt_ids"].clone()}
    column = torch.arange(junk["prompt_ids"].shape[1])
    empty = column < junk["prompt_ids"].shape[1] - junk["prompt_lengths"][:, None]
    junk["prompt_ids"][empty] = 17
    junk["response_ids"] = torch.nn.functional.pad(SHARED["response_ids"], (0, 3), value=18)
    found, expected = response_states(trunk, junk), response_states(trunk, SHARED)
    assert torch.equal(found.hidden_ND, expected.hidden_ND)


def test_prompts_that_rows_share_are_read_once_and_little_padding_is_read():
    read = len(Ragged.of(SHARED).ids_N)
    prompts = sum(map(len, PROMPTS))
    fed = 4 * sum(max(len(response) - 1, 0) for response in RESPONSES)
    assert read == prompts + fed  # rows of one length share a block, so there is no padding
    own = Ragged.of(OWN)
    assert own.num_shared == 0
    lengths = (OWN["prompt_lengths"] + OWN["response_lengths"] - 1)[OWN["response_lengths"] > 0]
    assert sorted(lengths.tolist()) == [6, 7, 7, 10, 12]
    assert len(own.ids_N) == 3 * 7 + 2 * 12


def test_rows_of_a_block_differ_by_a_sixth_of_their_length_at_most():
    assert _block_sizes([80, 79, 75, 74, 60, 5, 5, 4, 0]) == [4, 1, 2, 1, 1]
    assert _block_sizes([]) == []


@catches("a sliding window ignored")
def test_texts_longer_than_the_window_and_other_models_are_left_to_transformers():
    trunk = trunk_of("mistral")
    trunk.config.sliding_window = 16
    assert lean_forward(trunk, SHARED) is None
    trunk.config.sliding_window = 20
    assert lean_forward(trunk, SHARED) is not None

    class Changed(type(trunk)):
        pass

    trunk.__class__ = Changed
    assert lean_forward(trunk, SHARED) is None


@catches("the attention of transformers stays changed after a forward")
def test_transformers_attention_is_chosen_for_the_time_of_a_forward_alone(monkeypatch):
    trunk = trunk_of("llama")
    assert trunk.config._attn_implementation == "sdpa"
    used = []
    forward = type(trunk).forward

    def watched(self, **arguments):
        used.append(self.config._attn_implementation)
        return forward(self, **arguments)

    monkeypatch.setattr(type(trunk), "forward", watched)
    padded(trunk, OWN, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        padded(trunk, OWN, monkeypatch)
    assert used == ["sdpa", "eager"]
    assert trunk.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", KINDS)
def test_the_look_at_a_trunk_before_it_is_trusted_finds_it_right(kind):
    trunk = trunk_of(kind)
    assert states._lean_deviation(trunk, lean_forward(trunk, OWN)) < 1e-5
