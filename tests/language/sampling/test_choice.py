"""From a uniform number to a token, in one level or two."""

import pytest
import torch

from lmpg.language.sampling.choice import BLOCK, choose, tokens_at
from tests.support.planted import catches

SIZES = [7, BLOCK, 4 * BLOCK, 4 * BLOCK + 1, 20 * BLOCK, 20 * BLOCK + 37]


def distribution(vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(vocabulary, generator=generator)
    logits[torch.rand(vocabulary, generator=generator) < 0.3] = -torch.inf
    return logits.softmax(0)


def naive(probs, u):
    cdf = probs.double().cumsum(0)
    return int((cdf <= u * cdf[-1]).sum())


@pytest.mark.parametrize("vocabulary", SIZES)
def test_a_token_is_the_one_at_which_the_cumulated_probability_passes_u(vocabulary):
    probs = distribution(vocabulary)
    u = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = tokens_at(probs.expand(500, -1), u).tolist()
    expected = [naive(probs, float(x)) for x in u]
    # where u lies on an edge, rounding may choose the neighbour
    assert sum(a != b for a, b in zip(found, expected)) <= 1


@catches("tokens beyond the vocabulary in its last block")
@pytest.mark.parametrize("vocabulary", SIZES)
def test_evenly_spread_uniforms_give_every_token_its_share(vocabulary):
    probs = distribution(vocabulary)
    n = 50_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    count = torch.cat([tokens_at(probs.expand(5000, -1), x) for x in u.split(5000)])
    count = torch.bincount(count, minlength=vocabulary)
    assert float((count - n * probs).abs().max()) < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", SIZES)
def test_no_edge_gives_a_token_of_probability_zero(vocabulary, dtype):
    below_one = 1 - torch.finfo(dtype).eps / 2
    for seed in range(8):
        probs = distribution(vocabulary, seed) * (1 - 0.1 * seed)
        # u at the start of every token and of every block, as near as it can be said
        cdf = probs.double().cumsum(0)
        blocks = torch.stack([x.sum() for x in probs.split(BLOCK)]).double().cumsum(0)
        near = [torch.nextafter(blocks / blocks[-1], torch.tensor(x).double()) for x in (0.0, 1.0)]
        edges = torch.cat([torch.tensor([0.0, 1e-30, below_one]), *near, cdf / cdf[-1]]).to(dtype)
        edges = edges.clamp(max=below_one)[:3000]
        tokens = tokens_at(probs.expand(len(edges), -1), edges)
        assert bool((probs[tokens] > 0).all())
        assert dtype == torch.float32 or int(tokens[2]) == int(probs.nonzero()[-1])


@pytest.mark.parametrize("vocabulary", SIZES)
def test_a_rows_token_does_not_depend_on_the_other_rows(vocabulary):
    probs = torch.stack([distribution(vocabulary, seed) for seed in range(8)])
    u = torch.rand(8, generator=torch.Generator().manual_seed(2))
    together = tokens_at(probs, u)
    alone = [tokens_at(probs[i : i + 1], u[i : i + 1]) for i in range(8)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together.flip(0), tokens_at(probs.flip(0), u.flip(0)))


@catches("entropy from logits of any size")
@pytest.mark.parametrize("shift", [0.0, -80.0])
def test_what_is_recorded_is_that_of_the_log_softmax(shift):
    logits = 4 * torch.randn(16, 5000, generator=torch.Generator().manual_seed(3)) + shift
    choice = choose(logits.clone(), torch.rand(16), 50, 0.9)
    logp = logits.double().log_softmax(1)
    expected = logp.gather(1, choice.tokens_R[:, None])[:, 0]
    torch.testing.assert_close(choice.logprobs_R.double(), expected, rtol=1e-5, atol=1e-5)
    entropy = -(logp.exp() * logp).sum(1)
    torch.testing.assert_close(choice.entropy_R.double(), entropy, rtol=2e-5, atol=2e-5)
    greedy = choose(logits.clone(), None, 0, 1.0)
    assert torch.equal(greedy.tokens_R, logits.argmax(1))
