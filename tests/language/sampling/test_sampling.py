"""The sampler: what it samples, what it records, where it stops."""

import pytest
import torch

from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.choice import tokens_at, truncated
from lmpg.language.sampling.engines.cpu import CpuDecoder
from lmpg.language.sampling.engines.transformers import TransformersDecoder
from lmpg.language.sampling.sampler import Sampler
from tests.support.planted import catches
from tests.support.tiny import CONTEXT, EOS, PAD, VOCABULARY, tiny_model

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


@catches(
    "rows of the cache not dropped with the responses that end",
    "the temperature left out of sampling",
    "rows not moved into the places of those that end, or without their padding",
)
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


def test_tokens_follow_the_distribution_of_the_model_at_its_temperature():
    for temperature in (0.7, 1.0, 1.3):
        it = policy(temperature=temperature)
        n = 4000
        first = Sampler(it, 1).sample([PROMPTS[0]], n, uniforms(n, 1)).inputs["response_ids"][:, 0]
        logits = it.model(torch.tensor([PROMPTS[0]])).logits[0, -1]
        expected = (logits.double() / temperature).softmax(0).detach() * n
        seen = torch.bincount(first, minlength=VOCABULARY).double()
        order = expected.argsort(descending=True)
        rare = int((expected >= 10).sum()) - 1  # the last bin holds it and all rarer tokens
        observed, expected = (
            torch.cat([x[order[:rare]], x[order[rare:]].sum()[None]]) for x in (seen, expected)
        )
        statistic = float(((observed - expected) ** 2 / expected).sum())
        freedom = len(expected) - 1
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5, (temperature, statistic, freedom)


def test_evenly_spread_uniforms_give_each_token_its_share_exactly():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]).expand(1000, 5)
    tokens = tokens_at(probs, (torch.arange(1000) + 0.5) / 1000)
    assert torch.bincount(tokens, minlength=5).tolist() == [500, 0, 300, 200, 0]


@catches("a uniform on the edge of the cumulative distribution gives a token of probability 0")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_uniform_gives_a_token_of_probability_zero_or_none_at_all(dtype):
    below_one = 1 - torch.finfo(dtype).eps / 2
    edges = torch.tensor([0.0, 1e-30, 0.25, 0.5, 0.75, below_one], dtype=dtype)
    for scale in (1.0, 0.999999, 1.0000002, 1 / 3, 0.7, 1.9):
        probs = torch.tensor([0.0, 0.25, 0.0, 0.25, 0.5, 0.0, 0.0]) * scale
        tokens = tokens_at(probs.expand(len(edges), 7), edges)
        assert (probs[tokens] > 0).all(), (scale, tokens)
        assert tokens[0] == 1
        assert tokens[-1] == 4


@catches("random numbers by place in the batch instead of by row")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_sampled_together_and_one_by_one_get_the_same_tokens(kind):
    it = policy(kind, 1.2)
    numbers = uniforms(16, 24)
    together = responses(Sampler(it, 24).sample(PROMPTS, 4, numbers))
    alone = [
        responses(Sampler(it, 24).sample([PROMPTS[b // 4]], 1, numbers[b : b + 1]))[0]
        for b in range(16)
    ]
    assert len({len(ids) for ids in alone}) > 2
    assert together == alone


@pytest.mark.parametrize("check_every", [2, 5, 100])
def test_when_finished_rows_leave_the_batch_changes_nothing(check_every):
    it = policy("gpt2", 1.2, critic=True)
    samplers = [Sampler(it, 60), Sampler(it, 60)]
    samplers[1].check_every = check_every
    at_once, late = (s.sample(PROMPTS, 4, uniforms(16, 60)) for s in samplers)
    assert responses(at_once) == responses(late)
    assert torch.equal(at_once.finished_B, late.finished_B)
    torch.testing.assert_close(at_once.logprobs_BT, late.logprobs_BT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(at_once.values_BT, late.values_BT, rtol=1e-5, atol=1e-5)


@catches(
    "padding of prompts attended to in the CPU engine",
    "rows of a rollout not in the order of their prompts",
    "equal prompts go through the model once each",
    "room of the cache that is not filled attended to",
    "columns lost when the cache grows",
)
@pytest.mark.parametrize("decoder", [CpuDecoder, TransformersDecoder])
def test_rows_are_prompt_major_and_distinct_prompts_go_through_the_model_once(decoder, monkeypatch):
    batches = []
    prefill = decoder.prefill

    def counting(self, ids, *rest):
        batches.append(tuple(ids.shape))
        return prefill(self, ids, *rest)

    monkeypatch.setattr(decoder, "prefill", counting)
    if decoder is TransformersDecoder:
        monkeypatch.setattr("lmpg.language.sampling.sampler.why_transformers", lambda *_: "a test")
    samples = Sampler(policy(), 3).sample(PROMPTS, 2, uniforms(8, 3))
    assert batches[-1] == (3, 9)
    assert [ids[-1] for ids in samples.inputs["prompt_ids"].tolist()] == [7, 7, 9, 9, 18, 18, 7, 7]
    assert samples.inputs["prompt_lengths"].tolist() == [3, 3, 1, 1, 9, 9, 3, 3]


@catches("EOS not a step of the response")
def test_every_eos_id_ends_a_response_and_is_its_last_chosen_step():
    eos = (EOS, 20, 33)
    samples = Sampler(policy(eos=eos), 30).sample(PROMPTS, 8, uniforms(32, 30))
    lasts = set()
    for ids, finished in zip(responses(samples), samples.finished_B.tolist()):
        assert not set(ids[:-1]) & set(eos)
        assert (ids[-1] in eos) == finished
        assert finished or len(ids) == 30
        lasts.add(ids[-1])
    assert lasts >= set(eos)
    lengths = samples.inputs["response_lengths"]
    assert torch.equal(samples.mask_BT.sum(1), lengths)
    assert samples.mask_BT.shape[1] == lengths.max()


@catches("response length from ids != pad")
def test_a_pad_token_that_is_the_eos_hides_nothing():
    separate, same = (
        Sampler(policy(pad=pad), 30).sample(PROMPTS, 4, uniforms(16, 30)) for pad in (PAD, EOS)
    )
    assert responses(separate) == responses(same)
    assert torch.equal(separate.mask_BT, same.mask_BT)
    assert torch.equal(separate.logprobs_BT, same.logprobs_BT)
    assert (same.inputs["response_ids"][~same.mask_BT] == EOS).all()


def test_what_is_recorded_is_zero_in_padding():
    samples = Sampler(policy(critic=True), 30).sample(PROMPTS, 4, uniforms(16, 30))
    assert not samples.mask_BT.all()
    for recorded in (samples.logprobs_BT, samples.entropy_BT, samples.values_BT):
        assert (recorded[~samples.mask_BT] == 0).all()
        assert (recorded[samples.mask_BT] != 0).all()


@catches("positions of padding beyond the context")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check_every", [1, 7])
def test_a_response_stops_where_the_context_ends(kind, check_every):
    it = policy(kind, eos=(-1,))
    sampler = Sampler(it, 30)
    sampler.check_every = check_every
    prompts = [[5] * (CONTEXT - 4), [6] * 10, [7] * (CONTEXT - 1)]
    samples = sampler.sample(prompts, 1, uniforms(3, 30))
    assert samples.inputs["response_lengths"].tolist() == [4, 30, 1]
    assert not samples.finished_B.any()
    torch.testing.assert_close(
        samples.logprobs_BT, it.evaluate(samples.inputs).logprobs_BT, rtol=1e-5, atol=1e-5
    )


def test_dropout_and_generation_config_stay_out_of_sampling():
    plain = policy("gpt2")
    noisy = policy("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    noisy.model.generation_config.temperature = 3.0
    noisy.model.generation_config.top_k = 1
    noisy.model.generation_config.max_new_tokens = 2
    expected, found = (Sampler(p, 20).sample(PROMPTS, 4, uniforms(16, 20)) for p in (plain, noisy))
    assert responses(found) == responses(expected)
    assert torch.equal(found.logprobs_BT, expected.logprobs_BT)


def test_what_cannot_be_sampled_is_refused():
    sampler = Sampler(policy(), 8)
    with pytest.raises(ValueError, match=r"prompt 1 has 64 tokens, expected 1 to 63"):
        sampler.sample([[3], [3] * CONTEXT], 1, None)
    with pytest.raises(ValueError, match=r"prompt 0 has 0 tokens"):
        sampler.sample([[]], 1, None)
    with pytest.raises(ValueError, match=r"shape \(4, 7\), expected \(4, 8\)"):
        sampler.sample([[3], [4]], 2, uniforms(4, 7))
    with pytest.raises(ValueError, match="no prompts"):
        sampler.sample([], 2, None)


def test_recorded_tensors_can_be_trained_on():
    it = policy(critic=True)
    samples = Sampler(it, 8).sample(PROMPTS, 2, uniforms(8, 8))
    evaluation = it.evaluate(samples.inputs)
    (evaluation.logprobs_BT * samples.logprobs_BT + evaluation.values_BT).sum().backward()
    assert all(p.grad is not None for p in it.parameters())


@catches("nucleus without the token that crosses p")
@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (2, 1.0, [0, 0.4, 0, 0.3]),
        (9, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (0, 0.7, [0, 0.4, 0, 0.3]),
        (0, 0.71, [0, 0.4, 0.2, 0.3]),
        (0, 0.01, [0, 0.4, 0, 0]),
        (3, 0.7, [0, 0.4, 0, 0.3]),  # 0.7 of the 0.9 that the top 3 have
    ],
)
def test_truncation_keeps_the_likeliest_tokens(top_k, top_p, kept):
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    assert truncated(probs, top_k, top_p)[0].tolist() == pytest.approx(kept)


@catches("log-probs of the cut-off distribution recorded")
def test_truncated_samples_come_from_the_top_and_keep_the_whole_distributions_logprobs():
    it = policy()
    samples = Sampler(it, 12, top_k=3).sample(PROMPTS, 16, uniforms(64, 12))
    fresh = it.evaluate(samples.inputs).logprobs_BT
    torch.testing.assert_close(samples.logprobs_BT, fresh.detach(), rtol=1e-5, atol=1e-5)
    first = {ids[0] for ids, prompt in zip(responses(samples)[:16], PROMPTS * 16)}
    logits = it.model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert first <= set(logits.topk(3).indices.tolist())
    assert len(first) > 1
