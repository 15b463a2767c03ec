"""DPO, KTO and Bradley-Terry: losses of numbers alone, without a model, against worked numbers."""

from __future__ import annotations

import math

import pytest
import torch

from lmpg.algorithms import ALGORITHMS, OFFLINE_ALGORITHMS, algorithm_name
from lmpg.algorithms.fixed_data.bradley_terry import BradleyTerry
from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_loss_of_dpo_is_that_of_the_difference_of_log_ratios():
    logprobs = torch.tensor([[-3.0, -8.0], [-5.0, -6.0]], requires_grad=True)
    reference = torch.tensor([[-4.0, -6.0], [-4.0, -6.0]])
    lengths = torch.tensor([[2.0, 4.0], [5.0, 3.0]])
    terms = DPO(beta=0.5).loss_terms(logprobs, reference, lengths)
    assert terms["loss"].tolist() == pytest.approx([softplus(-1.0), softplus(1.0)])
    assert terms["rewards/chosen"].tolist() == [0.5, -1.0]
    assert terms["rewards/rejected"].tolist() == [-0.5, 0.0]
    terms["loss"].sum().backward()
    assert [x < 0 for x in logprobs.grad.flatten().tolist()] == [True, True, False, False]
    assert not terms["rewards/chosen"].requires_grad


@pytest.mark.parametrize("method", [DPO(per_token=True, beta=1.0), DPO(loss="ipo", beta=1.0)])
def test_log_ratios_per_token_are_divided_by_the_number_of_tokens(method):
    logprobs, lengths = torch.tensor([[-2.0], [-9.0]]), torch.tensor([[2.0], [3.0]])
    terms = method.loss_terms(logprobs, torch.zeros(2, 1), lengths)
    assert (terms["rewards/chosen"].item(), terms["rewards/rejected"].item()) == (-1.0, -3.0)
    expected = (2 - 1 / 2) ** 2 if method.loss == "ipo" else softplus(-2.0)
    assert terms["loss"].item() == pytest.approx(expected)


def test_the_loss_of_kto_values_gains_and_losses_from_its_baseline():
    method = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    logprobs = torch.tensor([-3.0, -3.0], requires_grad=True)
    desirable = torch.tensor([True, False])
    terms = method.loss_terms(logprobs, torch.tensor([-7.0, -7.0]), desirable, torch.tensor(2.0))
    gain = 1 / (1 + math.exp(-1.0))
    assert terms["loss"].tolist() == pytest.approx([2 * (1 - gain), 3 * gain])
    assert terms["rewards"].tolist() == [2.0, 2.0]
    terms["loss"].sum().backward()
    assert [x < 0 for x in logprobs.grad.tolist()] == [True, False]


def test_the_loss_of_a_reward_model_has_margins_and_centres_scores():
    scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 3.0]])
    terms = BradleyTerry(margin=0.5, centring=0.1).loss_terms(scores, torch.tensor([0.0, 1.0, 0.0]))
    expected = [softplus(-0.5) + 0.9, softplus(1.5) + 0.4, softplus(3.5) + 0.9]
    assert terms["loss"].tolist() == pytest.approx(expected)
    assert terms["pair_accuracy"].tolist() == [1.0, 0.5, 0.0]


def test_offline_algorithms_have_names_of_their_own():
    assert not ALGORITHMS.keys() & OFFLINE_ALGORITHMS.keys()
    for name, algorithm in OFFLINE_ALGORITHMS.items():
        assert algorithm_name(algorithm) == name
        with pytest.raises(ValueError, match="frozen"):
            algorithm().beta = 1.0
