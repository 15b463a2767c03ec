"""The CPU engine: the same samples as the model's own forward."""

import logging

import pytest
import torch

from lmpg.language.models.architectures import ACTIVATIONS
from lmpg.language.sampling.engines import linear
from lmpg.language.sampling.sampler import Sampler, engine_deviation, why_transformers
from tests.support.families import policy_of, tiny_family
from tests.support.planted import catches
from tests.support.tiny import CONTEXT

PROMPTS = [[5, 6, 7], [9], [4, 4, 8, 12, 30, 31, 2, 17, 18], [5, 6, 7]]
FEW = ["llama, biases", "mistral, short window", "qwen3", "gpt2", "gemma2", "olmo2"]
"""Families of which each has what others lack."""


def policy(family="llama", lora=False, **changes):
    return policy_of(tiny_family(family, **changes), lora)


def uniforms(rows, steps):
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(0))


def assert_exact(it, samples, tolerance=1e-5):
    """What was recorded equals a fresh forward of the model."""
    with torch.no_grad():
        fresh = it.evaluate(samples.inputs)
    for name in ("logprobs_BT", "entropy_BT", "values_BT"):
        found, expected = getattr(samples, name), getattr(fresh, name)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_same(one, other):
    """The same tokens, and the same records up to rounding."""
    assert torch.equal(one.inputs["response_ids"], other.inputs["response_ids"])
    for name in ("logprobs_BT", "entropy_BT", "values_BT"):
        found, expected = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def general(monkeypatch):
    """Switches to the model's own forward."""
    return lambda: monkeypatch.setattr(
        "lmpg.language.sampling.sampler.why_transformers", lambda *_: "a test"
    )


@catches(
    "biases of rotated heads in another order than their weights",
    "the norm of queries used for keys",
    "attention's scaling by layer ignored",
)
@pytest.mark.parametrize("packed_from", [0, 2**15])
@pytest.mark.parametrize("family", FEW)
def test_every_family_is_sampled_as_by_its_own_forward(family, packed_from, general, monkeypatch):
    monkeypatch.setattr(linear, "_PACKED_FROM", packed_from)
    it = policy(family)
    assert why_transformers(it, CONTEXT) is None
    assert engine_deviation(it) < 1e-6
    fused = [Sampler(it, 50).sample(PROMPTS, 4, u) for u in (uniforms(16, 50), None)]
    lengths = fused[0].inputs["response_lengths"]
    assert len(lengths.unique()) > 3
    assert int(lengths.max()) > 20  # the cache has grown
    for samples in fused:
        assert_exact(it, samples)
    general()
    for samples, u in zip(fused, (uniforms(16, 50), None)):
        assert_same(samples, Sampler(it, 50).sample(PROMPTS, 4, u))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_in_bfloat16_the_cpu_engine_is_as_near_as_the_models_own_forward(family, general):
    it = policy(family)
    it.bf16 = True
    assert engine_deviation(it) < 0.02
    fused = Sampler(it, 20).sample(PROMPTS, 4, uniforms(16, 20))
    assert fused.logprobs_BT.dtype == torch.float32
    with torch.no_grad():
        fresh = it.evaluate(fused.inputs)
    assert float((fused.logprobs_BT - fresh.logprobs_BT).abs().mean()) < 0.01
    assert float((fused.values_BT - fresh.values_BT).abs().mean()) < 0.01


@catches(
    "weights of the CPU engine read once for all rollouts",
    "an adapter left out of the weights of the CPU engine",
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [False, True])
def test_weights_are_read_again_in_every_rollout(family, lora):
    it = policy(family, lora)
    sampler = Sampler(it, 12)
    assert why_transformers(it, CONTEXT) is None
    before = sampler.sample(PROMPTS, 4, uniforms(16, 12))
    with torch.no_grad():
        for x in it.parameters():
            if x.requires_grad:
                x += 0.05 * torch.randn(x.shape)
    after = sampler.sample(PROMPTS, 4, uniforms(16, 12))
    assert not torch.equal(before.inputs["response_ids"], after.inputs["response_ids"])
    assert_exact(it, after)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "dynamic",
        ),
        ({"hidden_act": "tanh"}, "activation is tanh"),
    ],
)
def test_what_the_engine_does_not_know_is_sampled_by_the_model_and_said(changes, reason):
    it = policy(**changes)
    sampler = Sampler(it, 20)
    samples = [sampler.sample(PROMPTS, 4, uniforms(16, 20)) for _ in range(2)]
    assert_exact(it, samples[1])
    assert reason in sampler.backend


@catches("a subclass, or a layer of another type, taken for a known one")
def test_other_classes_and_layers_are_not_taken_for_known_ones():
    class Mine(type(policy().trunk)):
        pass

    class Quantised(torch.nn.Linear):
        pass

    it = policy()
    it.trunk.__class__ = Mine
    assert "Mine is none of LlamaModel" in why_transformers(it, CONTEXT)
    it = policy()
    it.model.model.layers[1].mlp.up_proj.__class__ = Quantised
    assert why_transformers(it, CONTEXT) == "it has layers of type Quantised"


@catches(
    "an engine that deviates from its model is trusted",
    "a model whose layers compute something else is trained by the ragged forward",
)
def test_a_model_that_computes_something_else_is_noticed(monkeypatch, caplog):
    """Both by the sampler and where its texts are evaluated again."""
    it = policy()
    attention = it.model.model.layers[1].self_attn
    forward = attention.forward

    def doubled(*args, **kwargs):
        output, weights = forward(*args, **kwargs)
        return 2 * output, weights

    monkeypatch.setattr(attention, "forward", doubled)
    sampler = Sampler(it, 20)
    samples = sampler.sample(PROMPTS, 4, uniforms(16, 20))
    assert "deviate from the model's by" in sampler.backend
    with caplog.at_level(logging.INFO):
        assert_exact(it, samples)
    assert "hidden states of lmpg's deviate from it by" in caplog.text


@catches("threads stay as they were set for sampling")
def test_threads_are_as_before_after_a_rollout():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Sampler(policy(), 3).sample(PROMPTS, 1, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_packed_products_are_plain_ones(activation, bias):
    weight, b = torch.randn(256, 160), torch.randn(256) if bias else None
    plain, packed = linear.DenseLinear(weight, b), linear.PackedLinear(weight, b)
    for rows in (1, 3, 64):
        x, other = torch.randn(rows, 160), torch.randn(rows, 256)
        for found, expected in (
            (packed(x), plain(x)),
            (packed.activated(x, activation), plain.activated(x, activation)),
            (packed.times(x, other), plain.times(x, other)),
            (packed.added_to(other, x), plain.added_to(other, x)),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
