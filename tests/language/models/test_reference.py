"""References: of one's own, refreshed, and a teacher's distributions."""

from __future__ import annotations

import pytest
import torch

from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.loading import load_policy, load_reference, load_tokenizer
from lmpg.language.models.settings import LoraSettings, ModelSettings
from lmpg.settings.section import UserError
from tests.language.models.test_lora import step
from tests.support.planted import catches
from tests.support.tiny import PAD, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

INPUTS = language_inputs([[5, 6, 7], [9]], [[10, 11, 12], [13, 14]], PAD)


def loaded(path, rank=0, **settings):
    torch.manual_seed(0)
    asked = ModelSettings(path=str(path), lora=LoraSettings(rank=rank), **settings)
    tokenizer = load_tokenizer(str(path))
    policy = load_policy(asked, tokenizer, critic=True, temperature=0.7)
    return policy, load_reference(asked, tokenizer, policy)


@catches("the reference is still the model that training starts from")
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("key", ["reference", "teacher"])
def test_a_reference_of_ones_own_is_that_model_whatever_the_policy_becomes(key, rank, tmp_path):
    mine, other = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b", "qwen2", seed=3)
    policy, reference = loaded(mine, rank, **{key: other})
    expected = loaded(other)[0].plain_logprobs(INPUTS)
    torch.testing.assert_close(reference.logprobs(INPUTS), expected, atol=1e-5, rtol=0)
    step(policy)
    torch.testing.assert_close(reference.logprobs(INPUTS), expected, atol=1e-5, rtol=0)
    assert not any("reference" in name or "teacher" in name for name in policy.trainable_state())


def test_a_reference_is_refused_by_name_where_it_reads_other_ids_or_is_no_model(tmp_path):
    mine, other = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["ab"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match=r"model\.teacher = .*b: its tokenizer differs .* 1 tokens"):
        loaded(mine, teacher=other)
    with pytest.raises(UserError, match=r"model\.reference = .*nowhere does not exist"):
        loaded(mine, reference=str(tmp_path / "nowhere"))


def test_the_context_is_no_longer_than_the_teachers(tmp_path):
    short = save_tiny(tmp_path / "b", max_position_embeddings=32)
    assert loaded(save_tiny(tmp_path / "a"), teacher=short)[0].context_length == 32


@catches("a refreshed reference moves on with the policy", "LoRA: the adapter of a reference lost")
@pytest.mark.parametrize("rank", [0, 4])
def test_a_refreshed_reference_is_the_policy_of_that_moment_and_comes_back(rank, tmp_path):
    path = save_tiny(tmp_path)
    policy = loaded(path, rank)[0]
    reference = policy.reference()
    first = reference.logprobs(INPUTS)
    assert reference.state() == {}
    step(policy)
    at_refresh = policy.logprobs(INPUTS).detach()
    reference.refresh(policy)
    saved = {name: x.clone() for name, x in reference.state().items()}
    step(policy)
    now = policy.logprobs(INPUTS).detach()
    assert torch.equal(reference.logprobs(INPUTS), at_refresh)
    assert torch.equal(policy.logprobs(INPUTS), now)
    assert (at_refresh - first).abs().max() > 1e-3
    fresh = loaded(path, rank)[0]
    again = fresh.reference()
    again.load_state(saved)
    assert torch.equal(again.logprobs(INPUTS), at_refresh)
    assert torch.equal(fresh.logprobs(INPUTS), first)


@catches("the teacher's distribution one token late")
@pytest.mark.parametrize("rank", [0, 4])
def test_the_divergence_of_a_policy_is_that_of_both_models_own_logits(rank, tmp_path):
    mine = save_tiny(tmp_path / "a")
    other = save_tiny(tmp_path / "b", seed=5, vocab_size=VOCABULARY + 7)  # padded further
    policy, teacher = loaded(mine, rank, teacher=other)
    policy.learn_from(teacher, 0.3)
    found = policy.evaluate(INPUTS).divergence_BT
    theirs = tiny_model(seed=5, vocab_size=VOCABULARY + 7)
    for b, (prompt, response) in enumerate([([5, 6, 7], [10, 11, 12]), ([9], [13, 14])]):
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            logits = [model(ids).logits[0] for model in (policy.causal_lm, theirs)]
        rows = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        p, q = ((x[rows, :VOCABULARY] / 0.7).softmax(1) for x in logits)
        m = 0.3 * q + 0.7 * p
        expected = 0.3 * (q * (q / m).log()).sum(1) + 0.7 * (p * (p / m).log()).sum(1)
        torch.testing.assert_close(found[b, : len(response)], expected, atol=1e-5, rtol=1e-4)
    assert found[1, 2] == 0
    with torch.no_grad():
        assert policy.evaluate(INPUTS).divergence_BT is None
    found.sum().backward()
    assert all(p.grad is None for p in teacher._policy.parameters())
