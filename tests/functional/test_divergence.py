"""The divergence from a teacher's distributions against a plain oracle, gradients and all."""

from __future__ import annotations

import pytest
import torch

from lmpg.functional.divergence import HeadOutputs, generalised_jsd
from lmpg.functional.logprobs import LogitShape
from tests.support.planted import catches


def outputs(vocabulary, width, seed, shape):
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(n, generator=g).double() for n in ((7, width), (vocabulary, width))]
    bias = torch.randn(vocabulary, generator=g).double()
    return HeadOutputs(*drawn, bias, shape)


def plain(mine, theirs, beta, vocabulary):
    """β KL(q ‖ m) + (1 − β) KL(p ‖ m) from all logits at once."""
    p, q = (
        x.shape.logits(x.hidden @ x.weight.T + x.bias)[:, :vocabulary].softmax(1)
        for x in (mine, theirs)
    )
    if beta in (0, 1):
        one, other = (q, p) if beta == 0 else (p, q)
        return (one * (one / other).log()).sum(1)
    m = beta * q + (1 - beta) * p
    return beta * (q * (q / m).log()).sum(1) + (1 - beta) * (p * (p / m).log()).sum(1)


@catches(
    "JSD: policy and teacher exchanged",
    "JSD: the gradient through the mixture left out",
    "JSD: the gradient forgets the softcap",
)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("shape", "rows"), [(LogitShape(0.7), 11), (LogitShape(0.7, 1.3, 5.0), 11), (LogitShape(), 13)]
)
def test_the_divergence_and_its_gradients_are_those_of_all_logits(beta, shape, rows):
    mine, theirs = outputs(rows, 5, 1, shape), outputs(11, 6, 2, LogitShape(0.7))
    leaves = [x.requires_grad_() for x in mine[:3]]
    weights = torch.rand(7, generator=torch.Generator().manual_seed(3)).double()
    found, expected = generalised_jsd(mine, theirs, beta, 3), plain(mine, theirs, beta, 11)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), leaves), wanted)


def test_the_divergence_from_oneself_is_zero_and_bounded_where_supports_differ():
    mine = outputs(11, 5, 1, LogitShape())
    for beta in (0.0, 0.3, 1.0):
        assert generalised_jsd(mine, mine, beta, 3).abs().max() < 1e-12
    hidden = torch.zeros(1, 1)
    sure = [HeadOutputs(hidden, torch.zeros(2, 1), b, LogitShape()) for b in torch.eye(2) * 1e4]
    assert generalised_jsd(*sure, 0.5, 3).item() == pytest.approx(torch.tensor(2.0).log().item())


def test_ids_that_no_token_has_count_on_neither_side():
    absent = torch.tensor([2, 9])
    mine, theirs = (outputs(11, 5, s, LogitShape(absent=absent)) for s in (1, 2))
    kept = [i for i in range(11) if i not in (2, 9)]
    less = [
        HeadOutputs(x.hidden, x.weight[kept], x.bias[kept], LogitShape()) for x in (mine, theirs)
    ]
    for beta in (0.0, 0.4, 1.0):
        found = generalised_jsd(mine._replace(hidden=mine.hidden.requires_grad_()), theirs, beta, 4)
        torch.testing.assert_close(found, generalised_jsd(*less, beta, 4))
        (gradient,) = torch.autograd.grad(found.sum(), mine.hidden)
        assert gradient.isfinite().all()


def test_no_more_than_a_chunk_of_logits_is_held():
    largest = 0

    class Watched(LogitShape):
        def logits(self, raw):
            nonlocal largest
            largest = max(largest, len(raw))
            return super().logits(raw)

    mine, theirs = outputs(11, 5, 1, Watched()), outputs(11, 5, 2, Watched())
    hidden = mine.hidden.requires_grad_()
    generalised_jsd(mine._replace(hidden=hidden), theirs, 0.5, 3).sum().backward()
    assert largest == 3
