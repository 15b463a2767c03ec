"""Chunked log-probs of tokens against full logits and autograd."""

import pytest
import torch

from lmpg.functional.logprobs import LogitShape, head_logits, token_logprobs
from lmpg.language.models import head
from tests.support.planted import catches

SHAPES = [(1.0, 1.0, None), (0.7, 1.0, None), (1.3, 0.25, None), (0.7, 0.5, 2.0)]


def case(dtype, n=11, d=5, v=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*size, generator=g, dtype=dtype) for size in ((n, d), (v, d), (v,))
    )
    return hidden, weight, bias, torch.randint(v, (n,), generator=g)


def full_logits(hidden, weight, bias, ids, temperature, scale, softcap):
    """The naive way: all logits at once, torch's own autograd."""
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logp = (logits / temperature).log_softmax(-1)
    return logp[torch.arange(len(ids)), ids], -(logp.exp() * logp).sum(-1)


@catches(
    "the gradient of the entropy without its + H",
    "the temperature left out of the gradient of log-probs",
    "the head's gradient of the last chunk alone",
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 4, 11, 1000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_equal_those_of_full_logits(shape, chunk, with_bias):
    hidden, weight, bias, ids = case(torch.float32)
    leaves = [x.requires_grad_() for x in (hidden, weight, *([bias] if with_bias else []))]
    bias = bias if with_bias else None
    weights = torch.randn(2, 11, generator=torch.Generator().manual_seed(1))

    def with_gradients(logprobs, entropy):
        loss = (logprobs * weights[0] + entropy * weights[1]).sum()
        return logprobs, entropy, *torch.autograd.grad(loss, leaves)

    temperature, scale, softcap = shape
    ours = token_logprobs(hidden, weight, bias, ids, temperature, chunk, scale, softcap)
    naive = full_logits(hidden, weight, bias, ids, temperature, scale, softcap)
    for found, expected in zip(with_gradients(*ours), with_gradients(*naive)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("output", [0, 1])
def test_gradcheck_of_each_output(shape, output):
    hidden, weight, bias, ids = case(torch.float64, n=5)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    temperature, scale, softcap = shape
    assert torch.autograd.gradcheck(
        lambda *x: token_logprobs(*x, ids, temperature, 2, scale, softcap)[output], inputs
    )


def test_a_frozen_head_gets_no_gradient_but_the_hidden_states_do():
    hidden, weight, bias, ids = case(torch.float32)
    hidden.requires_grad_()
    token_logprobs(hidden, weight, bias, ids, 1.0, 4)[0].sum().backward()
    assert weight.grad is None
    expected = torch.autograd.grad(
        full_logits(hidden, weight, bias, ids, 1.0, 1.0, None)[0].sum(), hidden
    )
    torch.testing.assert_close(hidden.grad, expected[0])


def test_the_chunk_changes_nothing():
    hidden, weight, bias, ids = case(torch.float64)
    one, many = (token_logprobs(hidden, weight, bias, ids, 0.7, c) for c in (1000, 3))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-14)


def test_no_steps_give_empty_results_and_zero_gradients():
    hidden, weight, bias, ids = case(torch.float32, n=0)
    weight.requires_grad_()
    logprobs, entropy = token_logprobs(hidden, weight, bias, ids, 1.0, 4)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_entropy_of_a_uniform_distribution_is_the_log_of_the_vocabulary():
    hidden, weight, _, ids = case(torch.float64)
    logprobs, entropy = token_logprobs(hidden * 0, weight, None, ids, 0.5, 4)
    torch.testing.assert_close(entropy, torch.full((11,), 7.0, dtype=torch.float64).log())
    torch.testing.assert_close(logprobs, -entropy)


@catches("log-softmax in bfloat16")
def test_the_log_softmax_is_float32_even_where_the_product_is_bfloat16():
    hidden, weight, bias, ids = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, entropy = token_logprobs(hidden, weight, bias, ids, 1.0, 4)
        logits = head_logits(hidden, weight, bias, LogitShape())
    product = torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16())
    expected = product.float().log_softmax(-1)
    assert logprobs.dtype == entropy.dtype == logits.dtype == torch.float32
    assert torch.equal(logits, product.float())
    torch.testing.assert_close(logprobs, expected[torch.arange(11), ids])


def test_gradients_in_autocast_are_near_those_in_float32():
    hidden, weight, bias, ids = case(torch.float32)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]

    def gradients():
        logprobs, entropy = token_logprobs(hidden, weight, bias, ids, 1.0, 4)
        return torch.autograd.grad((logprobs + entropy).sum(), leaves)

    with torch.autocast("cpu", torch.bfloat16):
        bf16 = gradients()
    for ours, expected in zip(bf16, gradients()):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.05)


@catches("kept probabilities without the factor of the temperature")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [(1.0, 0.3), (1.0, None), (None, 0.3)])
def test_logits_that_are_kept_give_the_same_as_those_computed_again(shape, weights):
    hidden, weight, bias, ids = case(torch.float32)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    temperature, scale, softcap = shape

    def gradients(kept):
        found = token_logprobs(hidden, weight, bias, ids, temperature, 4, scale, softcap, kept)
        loss = sum((w * x.square()).sum() for w, x in zip(weights, found) if w is not None)
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        return *found, *first, *torch.autograd.grad(loss, leaves)  # kept logits serve once

    for found, expected in zip(gradients(77), gradients(76)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@catches("p − 1 of a likely token from a p that is rounded already")
def test_likely_tokens_keep_the_digits_of_their_gradient_in_bfloat16():
    """1 − p of 0.999 is lost where p is rounded to eight bits first."""
    hidden, weight = torch.full((4, 1), 8.0), torch.tensor([[1.0], [0.125], [0.0]])
    ids, gradients = torch.zeros(4, dtype=torch.long), []
    for bf16, kept in ((False, 0), (True, 0), (True, 12)):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logprobs, _ = token_logprobs(*leaves, None, ids, 1.0, 4, kept=kept)
        assert float(logprobs.detach()[0].exp()) > 0.998
        gradients.append(torch.autograd.grad(logprobs.sum(), leaves))
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], rtol=0.02, atol=0)


@catches("all logits of a large vocabulary at once")
def test_a_large_vocabulary_is_cut_into_chunks_that_stay_far_below_full_logits(monkeypatch):
    seen = []

    def chunked(hidden, weight, bias, ids, temperature, chunk, *rest):
        seen.append((chunk * len(weight), rest[2]))
        return token_logprobs(hidden, weight, bias, ids, temperature, chunk, *rest)

    monkeypatch.setattr(head, "token_logprobs", chunked)
    for words, tokens in [(151_936, 8192), (4096, 8192), (7, 8192)]:
        weight = torch.empty(words, 1).fill_(0.1)
        head.token_logprobs_of(torch.ones(2, 1), weight, torch.zeros(2, dtype=torch.long))
        logits, kept = seen.pop()
        assert logits <= max(0.15 / 4 * tokens * words, 2**20)  # a few copies at a time
        assert kept <= 0.06 * 8192 * 151_936
