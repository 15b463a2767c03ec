"""GDPO, OPO, MaxRL and RAFT: what a group's scores become, against worked numbers and oracles."""

import itertools

import pytest
import torch

from lmpg.functional.advantages import (
    batch_standardised,
    best_of_group,
    decoupled,
    group_standardised,
    length_weighted,
    relative_to_mean,
)
from tests.support.planted import catches

SCORES = torch.tensor([[1.0, 2, 3, 4]])
ALL = torch.ones(1, 4).bool()


@catches("the optimal baseline forgets the responses' lengths")
def test_the_length_weighted_baseline_is_the_mean_over_all_tokens_of_the_group():
    lengths = torch.tensor([[4, 3, 2, 1]])
    assert length_weighted(SCORES, ALL, lengths)[0].tolist() == pytest.approx([-1, 0, 1, 2])
    valid = torch.tensor([[True, True, False, True]])
    found = length_weighted(SCORES, valid, lengths)[0].tolist()
    assert found == pytest.approx([1 - 14 / 8, 2 - 14 / 8, 0, 4 - 14 / 8])


@catches("MaxRL not divided by the group's mean")
def test_relative_scores_give_the_gradient_of_the_log_of_the_share_that_is_right():
    assert relative_to_mean(torch.tensor([[1.0, 0, 0, 0]]), ALL)[0].tolist() == [3, -1, -1, -1]
    assert relative_to_mean(torch.tensor([[0.0, 0, 0, 0]]), ALL)[0].tolist() == [0, 0, 0, 0]
    logits = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    right = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    groups = torch.tensor(list(itertools.product(range(3), repeat=4)))
    logprobs = logits.log_softmax(0)
    chances = logprobs.detach()[groups].sum(1).exp()
    advantages = relative_to_mean(right[groups], torch.ones_like(groups).bool())
    gain = (chances * (advantages * logprobs[groups]).mean(1)).sum()  # over all groups of 4
    p = (logprobs.exp() * right).sum()
    (found,) = torch.autograd.grad(gain, logits, retain_graph=True)
    (of_log_p,) = torch.autograd.grad(p.log(), logits)
    torch.testing.assert_close(found, (1 - (1 - p.detach()) ** 3) * of_log_p)


@catches("each group divided by its own spread, not the batch's")
def test_batch_standardised_scores_are_divided_by_the_spread_of_all_groups():
    scores = torch.tensor([[0.0, 2], [10, 14]])
    found = batch_standardised(scores, torch.ones(2, 2).bool())
    expected = torch.tensor([[-1.0, 1], [-2, 2]]) / (10 / 3) ** 0.5
    torch.testing.assert_close(found, expected)


@catches("rewards summed before they are standardised")
def test_decoupled_rewards_tell_apart_what_their_standardised_sum_does_not():
    # two groups of two: the better response gains by one of the rewards, or by both
    first = torch.tensor([[0.0, 1], [0, 1]])
    second = torch.tensor([[0.0, 0], [0, 100]])
    both, valid = torch.stack([first, second]), torch.ones(2, 2).bool()
    together = group_standardised(first + second, valid, 1e-9)
    torch.testing.assert_close(together[0], together[1])
    found = decoupled(both, torch.tensor([1.0, 0.5]), valid, 1e-9)
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[-half, half], [-1.5 * half, 1.5 * half]]))


@catches("the worst of a group kept", "a response without a score kept as the best")
def test_the_best_of_a_group_are_those_of_the_highest_scores_that_came_first():
    scores = torch.tensor([[1.0, 3, 3, 2], [0, 0, 0, 0], [9, 1, 2, 3]])
    valid = torch.ones(3, 4).bool()
    valid[2, 0] = False
    one = best_of_group(scores, valid, 1).nonzero()[:, 1]
    assert one.tolist() == [1, 0, 3]
    two = best_of_group(scores, valid, 2).nonzero()[:, 1]
    assert two.tolist() == [1, 2, 0, 1, 2, 3]
    assert not best_of_group(scores, torch.zeros(3, 4).bool(), 3).any()
