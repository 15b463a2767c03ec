"""Every family that lmpg computes itself, against transformers: trained, evaluated, sampled."""

from dataclasses import fields, replace

import pytest
import torch

from lmpg.language.models.architectures import READERS, architecture, deviation, unsupported
from lmpg.language.models.decoder_parts import Norm
from lmpg.language.models.forward import attention, response_states
from lmpg.language.models.forward.decoder import hidden_states
from lmpg.language.models.forward.ragged import Ragged
from lmpg.language.models.inputs import language_inputs
from lmpg.language.sampling.engines import cuda_rollouts
from lmpg.language.sampling.sampler import Sampler
from tests.support.families import FAMILIES, policy_of, tiny_family, tiny_of
from tests.support.planted import catches
from tests.support.recorded_graphs import RecordedGraphs
from tests.support.tiny import CONTEXT, PAD

PROMPTS = [[5, 6, 7], [9], [4, 4, 8, 12, 30, 31, 2, 17, 18], [11, PAD, 3, 9]]
RESPONSES = [[10, 11, 1], [PAD, 1, PAD, 14, 15, 16], [13], [], [20, 21, 22, 23], [7] * 11]
OWN = language_inputs([[*PROMPTS[i % 4], i] for i in range(6)], RESPONSES, PAD)
SHARED = language_inputs([PROMPTS[i // 6] for i in range(24)], RESPONSES * 4, PAD)
ATTENTION = {
    "plain": {},
    "in blocks of queries": {"_MANY_SCORES": 0, "_QUERIES_AT_ONCE": 2},
    "fused": {"PLAIN_UP_TO": {}},
}


@pytest.fixture
def trusted(monkeypatch):
    """Otherwise a forward that errs is not used, and nobody sees that it does."""
    monkeypatch.setattr(response_states, "_agrees", lambda *_: True)


def assert_gradients_equal(ours, theirs, parameters):
    found, wanted = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (ours, theirs))
    for x, y in zip(found, wanted):
        assert (x is None) == (y is None)
        if y is not None:
            scale = float(y.abs().max().clamp(min=1))
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5 * scale)


def assert_trained_as_by_transformers(model, inputs):
    """Hidden states of response tokens, and gradients of all weights."""
    trunk = model.base_model
    assert unsupported(trunk, CONTEXT) is None
    ours = response_states.response_states(trunk, inputs).hidden_ND
    theirs = response_states._padded_states(trunk, inputs).hidden_ND
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    sums = [(x * weights).sum() for x in (ours, theirs)]
    assert_gradients_equal(*sums, list(trunk.parameters()))


def own_logprobs_and_entropy(policy, inputs):
    """From the model's own logits, row by row, without padding."""
    logprobs, entropy = [], []
    lengths = zip(inputs["prompt_lengths"].tolist(), inputs["response_lengths"].tolist())
    for b, (prompt, response) in enumerate(lengths):
        width = inputs["prompt_ids"].shape[1]
        answer = inputs["response_ids"][b, :response]
        ids = torch.cat([inputs["prompt_ids"][b, width - prompt :], answer])
        logits = policy.model(input_ids=ids[None]).logits[0, prompt - 1 : -1]
        logp = (logits / policy.temperature).log_softmax(-1)
        logprobs.append(logp.gather(1, answer[:, None])[:, 0])
        entropy.append(-(logp.exp() * logp).sum(1))
    return torch.cat(logprobs), torch.cat(entropy)


def assert_evaluated_as_by_transformers(policy, inputs):
    """Log-probs, entropy, and gradients of both."""
    found = policy.evaluate(inputs)
    mask = torch.arange(found.logprobs_BT.shape[1]) < inputs["response_lengths"][:, None]
    ours = found.logprobs_BT[mask], found.entropy_BT[mask]
    theirs = own_logprobs_and_entropy(policy, inputs)
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    weights = torch.randn(2, len(ours[0]), generator=torch.Generator().manual_seed(0))
    sums = [(torch.stack(x) * weights).sum() for x in (ours, theirs)]
    assert_gradients_equal(*sums, [x for x in policy.model.parameters() if x.requires_grad])


def assert_sampled_as_by_transformers(policy, monkeypatch, capture=None):
    """Greedily, token for token; what is recorded is what an evaluation finds."""
    monkeypatch.setattr(cuda_rollouts, "_COLUMNS", 16)
    sampler = Sampler(policy, 40, capture=capture)
    uniforms = torch.rand(16, 40, generator=torch.Generator().manual_seed(0))
    greedy, drawn = sampler.sample(PROMPTS, 1, None), sampler.sample(PROMPTS, 4, uniforms)
    assert f"by the {'CPU' if capture is None else 'CUDA'} engine" in sampler.backend
    for samples in (greedy, drawn):
        fresh = policy.evaluate(samples.inputs)
        for name in ("logprobs_BT", "entropy_BT", "values_BT"):
            found, expected = getattr(samples, name), getattr(fresh, name).detach()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    answers = greedy.inputs["response_ids"], greedy.inputs["response_lengths"]
    for prompt, ids, length in zip(PROMPTS, *answers):
        expected = prompt
        for token in ids[:length].tolist():
            logits = policy.model(input_ids=torch.tensor([expected])).logits[0, -1]
            assert token == int(logits.argmax())
            expected = [*expected, token]


@catches(
    "padding of a shared prompt attended to",
    "responses that share prompts go on from another row's prompt",
    "positions of responses that share a prompt start at 0",
    "queries of attention not scaled",
    "the gradient of rotary positions rotated the same way as the forward",
    "the gradient of a gated layer by its gate's input instead of its activation",
    "padding before a block of queries attended to",
    "a query's block lacks its own key",
    "a sliding window ignored, or off by one, within a response or to its prompt",
    "a windowed mask applied to the newest keys alone",
    "attention scores capped after they are masked, or without the cap's gradient",
    "a norm after attention left out",
    "queries of layers without positions not scaled",
    "the numbers of a head that are not rotated not scaled",
    "norms of Gemma by their weight instead of weight + 1",
)
@pytest.mark.parametrize("how", ATTENTION)
@pytest.mark.parametrize("inputs", [OWN, SHARED], ids=["own prompts", "shared prompts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_those_of_transformers(
    family, inputs, how, trusted, monkeypatch
):
    for name, value in ATTENTION[how].items():
        monkeypatch.setattr(attention, name, value)
    assert_trained_as_by_transformers(tiny_family(family), inputs)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_entropies_are_those_of_the_models_own_logits(family, lora, trusted):
    assert_evaluated_as_by_transformers(policy_of(tiny_family(family), lora), OWN)


@catches(
    "a sliding window taken for full attention, or off by one: reading prompts, on a CPU, on CUDA",
    "rotations by pairs of neighbours instead of halves of a head",
    "norms of Gemma packed without the 1 that is added to their weight",
    "Granite's factor of what a layer adds left out of packed weights",
    "q and k that one module computes: only q in the order of rotated pairs",
    "the embedding's scale left out of an engine",
    "a norm of all heads together taken for one of each head, on a CPU and on CUDA",
    "layers without positions rotated on CUDA",
    "scores capped after they are masked on CUDA",
    "the cap of logits left out of sampling",
)
@pytest.mark.parametrize("engine", ["cpu", "cuda"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_samples_are_those_of_transformers(family, engine, monkeypatch):
    capture = RecordedGraphs() if engine == "cuda" else None
    policy = policy_of(tiny_family(family), lora=family in ("phi3", "gemma2", "olmo2"))
    assert_sampled_as_by_transformers(policy, monkeypatch, capture)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_that_of_transformers(family, trusted):
    trunk = tiny_family(family).base_model
    exact = response_states.response_states(trunk, SHARED).hidden_ND
    with torch.autocast("cpu", torch.bfloat16):
        ours = response_states.response_states(trunk, SHARED).hidden_ND
        theirs = response_states._padded_states(trunk, SHARED).hidden_ND
    assert ours.dtype == exact.dtype
    assert deviation(ours, exact) <= 1.2 * deviation(theirs, exact)


def every_layer(**changes):
    return lambda decoder: replace(decoder, layers=[replace(x, **changes) for x in decoder.layers])


def windows(change):
    def changed(decoder):
        layers = [x if x.window is None else replace(x, window=change(x)) for x in decoder.layers]
        return replace(decoder, layers=layers)

    return changed


def without_offsets(decoder):
    def plain(part):
        is_norm = isinstance(part, Norm)
        return Norm(part.module) if is_norm else part

    layers = [
        type(x)(**{f.name: plain(getattr(x, f.name)) for f in fields(x)}) for x in decoder.layers
    ]
    return replace(decoder, layers=layers, last_norm=plain(decoder.last_norm))


MISTAKES = {
    "mistral, short window": [windows(lambda x: x.window + 1), windows(lambda x: None)],
    "qwen2, windows": [windows(lambda x: x.window - 1), every_layer(window=4)],
    "qwen3": [every_layer(q_norm=None, k_norm=None)],
    "gpt2, scaled layers": [every_layer(scaling=8**-0.5)],
    "gemma2": [
        without_offsets,
        lambda decoder: replace(decoder, attention_softcap=None),
        lambda decoder: replace(decoder, embedding_scale=1.0),
        windows(lambda x: x.window + 1),
        every_layer(attention_post_norm=None),
        every_layer(mlp_post_norm=None),
    ],
    "gemma3": [every_layer(rotary="full_attention"), every_layer(q_norm=None, k_norm=None)],
    "phi3": [windows(lambda x: x.window - 1)],
    "olmo2": [every_layer(q_norm=None, k_norm=None), every_layer(attention_post_norm=None)],
    "smollm3": [every_layer(rotary="")],
    "granite": [
        lambda decoder: replace(decoder, residual_multiplier=1.0),
        lambda decoder: replace(decoder, embedding_scale=1.0),
        every_layer(scaling=8**-0.5),
    ],
}


@pytest.mark.parametrize(
    ("family", "mistake"), [(name, x) for name, found in MISTAKES.items() for x in found]
)
@torch.no_grad()
def test_what_is_special_to_a_family_matters_in_its_tiny_model(family, mistake):
    """Otherwise the tests above would not see it left out."""
    decoder = architecture(tiny_family(family))
    right, wrong = (hidden_states(x, Ragged.of(SHARED)) for x in (decoder, mistake(decoder)))
    assert deviation(wrong, right) > 1e-3


def test_every_reader_has_a_row():
    assert {type(tiny_family(name).base_model) for name in FAMILIES} == set(READERS)


@pytest.mark.parametrize(
    ("family", "changes", "length", "reason"),
    [
        ("Falcon", {}, 9, "FalconModel is none of LlamaModel, MistralModel"),
        ("Llama", {"hidden_act": "tanh"}, 9, "its activation is tanh"),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            9,
            "its rope_type is dynamic, which depends on the length",
        ),
        ("Gemma3", {"use_bidirectional_attention": True}, 9, "use_bidirectional_attention"),
        ("GPT2", {"reorder_and_upcast_attn": True}, 9, "its config has reorder_and_upcast_attn"),
    ],
)
def test_what_no_reader_knows_is_left_to_transformers_and_said(family, changes, length, reason):
    assert reason in unsupported(tiny_of(family, **changes), length)


def test_rotations_that_depend_on_the_length_are_known_up_to_where_they_do():
    model = tiny_family("phi3, longrope")
    assert unsupported(model, CONTEXT) is None
    assert "longrope" in unsupported(model, CONTEXT + 1)


def test_a_class_derived_from_a_known_one_is_not_taken_for_it():
    trunk = tiny_family("mistral").base_model
    trunk.__class__ = type("Changed", (type(trunk),), {})
    assert "Changed is none of" in unsupported(trunk, 9)
