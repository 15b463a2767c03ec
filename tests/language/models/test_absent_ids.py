"""Padded vocabularies: ids that no token has are no choice, as if the model did not have them."""

from __future__ import annotations

import pytest
import torch

from lmpg.functional.logprobs import token_logprobs
from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.loading import load_policy, load_tokenizer
from lmpg.language.models.packing_check import packed_logprobs
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.language.sampling import sampler
from lmpg.language.sampling.sampler import Sampler
from tests.functional.test_logprobs import SHAPES, case
from tests.support.families import tiny_family
from tests.support.planted import catches
from tests.support.recorded_graphs import RecordedGraphs
from tests.support.tiny import CONTEXT, EOS, PAD, VOCABULARY, save_tiny, tiny_tokenizer

PADDED = VOCABULARY + 24
PROMPTS = [[5, 6, 7], [9], [4, 4, 8, 12, 30, 31, 2, 17, 18]]
RESPONSES = [[10, 11, EOS], [12, 13], [14]]
INPUTS = language_inputs(PROMPTS, RESPONSES, PAD)
FAMILIES = ["llama", "gpt2", "gemma2", "gemma2, untied"]


def pair(family: str, bf16: bool = False) -> tuple[CausalLMPolicy, CausalLMPolicy]:
    """A policy, and one with more rows, which are likelier than all others."""
    plain, padded = tiny_family(family), tiny_family(family, vocab_size=PADDED)
    rows = plain.state_dict()
    for name, x in padded.state_dict().items():
        x[: len(rows[name])] = rows[name]
        if len(x) > len(rows[name]):
            x[len(rows[name]) :] *= 5
    options = {"eos_token_ids": (EOS,), "pad_token_id": PAD, "context_length": CONTEXT}
    options |= {"temperature": 0.7, "bf16": bf16}
    absent = torch.arange(VOCABULARY, PADDED)
    return (
        CausalLMPolicy(plain, None, **options),
        CausalLMPolicy(padded, None, **options, absent_ids=absent),
    )


@catches(
    "absent ids left in the normalisation of log-probs",
    "absent ids left in the gradient of a capped head",
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [(1.0, 0.3), (1.0, None), (None, 0.3)])
@pytest.mark.parametrize("kept", [0, 77])
def test_the_softmax_is_over_the_other_ids_alone_whatever_their_places(shape, weights, kept):
    hidden, weight, bias, _ = case(torch.float32)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    absent, present = torch.tensor([1, 5, 6]), torch.tensor([0, 2, 3, 4])
    places = torch.arange(len(hidden)) % 4
    temperature, scale, softcap = shape
    given = temperature, 4, scale, softcap, kept

    def with_gradients(logprobs, entropy):
        parts = zip(weights, (logprobs, entropy))
        loss = sum((w * x.square()).sum() for w, x in parts if w is not None)
        return logprobs, entropy, *torch.autograd.grad(loss, leaves)

    ours = token_logprobs(*leaves, present[places], *given, absent)
    oracle = token_logprobs(hidden, weight[present], bias[present], places, *given)
    for found, expected in zip(with_gradients(*ours), with_gradients(*oracle)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@catches("ids that no token has sampled and learned from")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("engine", ["cpu", "transformers", "cuda"])
def test_every_engine_samples_as_if_the_rows_were_not_there(family, engine, monkeypatch):
    if engine == "transformers":
        monkeypatch.setattr(sampler, "why_transformers", lambda policy, length: "it is asked for")
    capture = RecordedGraphs() if engine == "cuda" else None
    uniforms = torch.rand(12, 10, generator=torch.Generator().manual_seed(0))
    for drawn in (uniforms, None):
        plain, padded = (
            Sampler(it, 10, capture=capture).sample(PROMPTS, 4, drawn) for it in pair(family)
        )
        assert torch.equal(padded.inputs["response_ids"], plain.inputs["response_ids"])
        for name in ("logprobs_BT", "entropy_BT"):
            found, expected = getattr(padded, name), getattr(plain, name)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    unmasked = pair(family)[1]
    unmasked.head = type(unmasked.head)(unmasked.causal_lm, 0.7)
    ids = Sampler(unmasked, 10).sample(PROMPTS, 4, uniforms).inputs["response_ids"]
    assert (ids >= VOCABULARY).any()  # the rows would be likely


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_entropy_and_gradients_are_those_of_the_model_without_the_rows(family):
    found = []
    for it in pair(family):
        new = it.evaluate(INPUTS)
        (new.logprobs_BT.sum() + 0.1 * new.entropy_BT.sum()).backward()
        gradients = {name: p.grad for name, p in it.named_parameters()}
        torch.testing.assert_close(new.logprobs_BT, it.plain_logprobs(INPUTS), rtol=1e-5, atol=1e-5)
        assert torch.equal(it.reference().logprobs(INPUTS), new.logprobs_BT)
        found.append((new, gradients))
    (plain, its), (padded, mine) = found
    torch.testing.assert_close(padded.logprobs_BT, plain.logprobs_BT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded.entropy_BT, plain.entropy_BT, rtol=1e-5, atol=1e-5)
    for name, gradient in mine.items():
        rows = len(its[name])
        torch.testing.assert_close(gradient[:rows], its[name], rtol=1e-3, atol=1e-5)
        assert (gradient[rows:] == 0).all()


def test_packed_texts_and_bfloat16_leave_them_out_too():
    texts = [[(p + r, [False] * len(p) + [True] * len(r)) for p, r in zip(PROMPTS, RESPONSES)]]
    plain, padded = (packed_logprobs(it, texts) for it in pair("llama"))
    for one, other in zip(padded, plain):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    plain, padded = (it.evaluate(INPUTS).logprobs_BT for it in pair("llama", bf16=True))
    torch.testing.assert_close(padded, plain, rtol=0.02, atol=0.02)


def load(path, **settings):
    settings = ModelSettings(path=str(path), **settings)
    return load_policy(settings, load_tokenizer(str(path)), critic=False, temperature=1.0)


def test_loading_says_once_how_many_there_are_and_a_whole_vocabulary_nothing(tmp_path, caplog):
    path = save_tiny(tmp_path / "padded", vocab_size=PADDED)
    for lora in (LoraSettings(), LoraSettings(rank=2)):
        caplog.clear()
        policy = load(path, lora=lora)
        assert policy.head.shape.absent.tolist() == [*range(VOCABULARY, PADDED)]
        assert "24 of the model's 88 ids have no token in its tokenizer" in caplog.text
        assert len(caplog.records) == 1
    caplog.clear()
    assert load(save_tiny(tmp_path / "whole")).head.shape.absent is None
    assert caplog.text == ""


def test_added_tokens_and_ids_that_end_a_response_count_as_tokens(tmp_path):
    path = save_tiny(tmp_path, vocab_size=PADDED)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    tokenizer.save_pretrained(path)
    assert load(path).head.shape.absent.tolist() == [*range(VOCABULARY + 1, PADDED)]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 70]}')
    assert 70 not in load(path).head.shape.absent.tolist()
