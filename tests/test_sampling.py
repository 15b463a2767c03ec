"""The sampler: what it samples, what it records, where it stops."""

import pytest
import torch

from lmpg.models.policy import CausalLMPolicy
from lmpg.sampling.sampler import Sampler
from tests.tiny import CONTEXT, EOS, PAD, tiny_model

KINDS = ["llama", "qwen2", "gpt2"]
PROMPTS = [[5, 6, 7], [9], [4, 4, 8, 12, 30, 31, 2, 17, 18], [5, 6, 7]]


def policy(kind="llama", temperature=1.0, eos=(EOS,), critic=False, pad=PAD, **changes):
    model = tiny_model(kind, **changes)
    head = None
    if critic:
        head = torch.nn.Linear(32, 1)
    return CausalLMPolicy(
        model,
        head,
        temperature=temperature,
        eos_token_ids=eos,
        pad_token_id=pad,
        context_length=CONTEXT,
    )


def uniforms(rows, steps, seed=0):
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed))


def responses(samples):
    lengths = samples.inputs["response_lengths"].tolist()
    return [ids[:n].tolist() for ids, n in zip(samples.inputs["response_ids"], lengths)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_sampled_logprobs_entropy_and_values_equal_a_fresh_forward(kind, temperature):
    it = policy(kind, temperature, critic=True)
    samples = Sampler(it, 20).sample(PROMPTS, 4, uniforms(16, 20))
    with torch.no_grad():
        fresh = it.evaluate(samples.inputs)
    assert samples.finished_B.any()
    assert not samples.finished_B.all()
    for sampled, again in (
        (samples.logprobs_BT, fresh.logprobs_BT),
        (samples.entropy_BT, fresh.entropy_BT),
        (samples.values_BT, fresh.values_BT),
        (samples.logprobs_BT, it.plain_logprobs(samples.inputs)),
    ):
        torch.testing.assert_close(sampled, again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_responses_equal_generate_token_for_token(kind):
    it = policy(kind)
    ours = responses(Sampler(it, 30).sample(PROMPTS, 1, None))
    for prompt, response in zip(PROMPTS, ours):
        ids = torch.tensor([prompt])
        generated = it.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30
        )
        assert response == generated[0, len(prompt) :].tolist()
