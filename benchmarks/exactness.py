"""How exact sampling is on a device: random models, rows that end at different times.

`deviation` and `mean` are of log-probs recorded while sampling from those of the model's own full
logits over the finished texts, in nats; `critic` is the worst of values from a fresh forward.
`same_tokens` is the share of tokens that these logits give for the same uniform numbers; `greedy`
of greedy responses that transformers' `generate` gives token for token; `again` whether the same
seed gives the same samples, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from models import SIZES, random_model
from torch import Tensor

from lmpg.language.models.policy import CausalLMPolicy, unpadded_rows
from lmpg.language.sampling.choice import choose
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.samples import Samples

EOS = tuple(range(4, 24))  # many, so that responses end early
STEPS, GROUP = 64, 4


def random_policy(size: str, bf16: bool, device: str) -> CausalLMPolicy:
    """A peaked random model with a critic on its trunk, at temperature 0.9."""
    model = random_model(size, ends=True, initializer_range=0.1)
    policy = CausalLMPolicy(
        model,
        torch.nn.Linear(SIZES[size]["hidden_size"], 1),
        temperature=0.9,
        eos_token_ids=EOS,
        pad_token_id=0,
        context_length=512,
        bf16=bf16,
    )
    return policy.to(device)


@torch.no_grad()
def exactness(size: str, bf16: bool, device: str) -> dict[str, Any]:
    """The figures of one model in one precision."""
    policy = random_policy(size, bf16, device)
    lengths = (3, 9, 1, 17, 30, 9, 12, 5)
    drawn = torch.Generator().manual_seed(0)
    prompts = [torch.randint(24, 500, (n,), generator=drawn).tolist() for n in lengths]
    uniforms_BT = torch.rand(len(prompts) * GROUP, STEPS, generator=drawn)
    sampler = Sampler(policy, STEPS)
    samples = sampler.sample(prompts, GROUP, uniforms_BT)
    again = [sampler.sample(prompts, GROUP, uniforms_BT) for _ in range(2)][-1]
    expected_BT = policy.plain_logprobs(samples.inputs)
    difference_N = (samples.logprobs_BT - expected_BT)[samples.mask_BT].abs()
    values_BT = policy.evaluate(samples.inputs).values_BT
    assert samples.values_BT is not None
    assert values_BT is not None
    return {
        "way": sampler.backend,
        "tokens": int(samples.mask_BT.sum()),
        "deviation": float(difference_N.max()),
        "mean": float(difference_N.mean()),
        "critic": float((samples.values_BT - values_BT).abs().max()),
        "same_tokens": same_tokens(policy, samples, uniforms_BT),
        "greedy": greedy(policy, sampler, prompts),
        "again": torch.equal(samples.inputs["response_ids"], again.inputs["response_ids"])
        and torch.equal(samples.logprobs_BT, again.logprobs_BT),
    }


def same_tokens(policy: CausalLMPolicy, samples: Samples, uniforms_BT: Tensor) -> float:
    """Share of sampled tokens that the model's own logits give for the same numbers."""
    same: list[bool] = []
    for row, (prompt, response) in enumerate(unpadded_rows(samples.inputs)):
        with policy.autocast():
            logits = policy.model(input_ids=torch.cat([prompt, response])[None]).logits[0]
        steps = logits[len(prompt) - 1 : -1].float() / policy.temperature
        numbers = uniforms_BT[row, : len(response)].to(steps.device)
        same += (choose(steps, numbers, 0, 1.0).tokens_R == response).tolist()
    return sum(same) / len(same)


def greedy(policy: CausalLMPolicy, sampler: Sampler, prompts: list[list[int]]) -> float:
    """Share of the likeliest responses that are those of `generate`."""
    ours = sampler.sample(prompts, 1, None).inputs
    same = 0
    for ids, (_, response) in zip(prompts, unpadded_rows(ours)):
        prompt = torch.tensor([ids], device=response.device)
        with policy.autocast():
            theirs = policy.model.generate(  # type: ignore[operator]
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=STEPS,
                eos_token_id=list(EOS),
                pad_token_id=0,
            )[0, len(ids) :]
        same += theirs.tolist() == response.tolist()
    return same / len(prompts)
