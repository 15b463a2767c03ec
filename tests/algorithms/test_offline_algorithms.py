"""Methods that learn from fixed data: losses of numbers alone, against worked numbers."""

from __future__ import annotations

import math

import pytest
import torch

from lmpg.algorithms import ALGORITHMS, OFFLINE_ALGORITHMS, algorithm_name
from lmpg.algorithms.fixed_data.bradley_terry import BradleyTerry
from lmpg.algorithms.fixed_data.dpo import DPO
from lmpg.algorithms.fixed_data.kto import KTO
from lmpg.algorithms.fixed_data.maximum_likelihood import MaximumLikelihood
from tests.support.planted import catches


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
    expected = (2 - 1 / 2) ** 2 if method.loss == ("ipo",) else softplus(-2.0)
    assert terms["loss"].item() == pytest.approx(expected)


@catches("a loss beside ipo takes ipo's log-probs per token")
def test_beside_ipo_other_losses_keep_their_sums():
    logprobs, lengths = torch.tensor([[-2.0], [-9.0]]), torch.tensor([[2.0], [3.0]])
    both = DPO(loss=("sigmoid", "ipo"), beta=1.0)
    terms = both.loss_terms(logprobs, torch.zeros(2, 1), lengths)
    assert terms["loss/ipo"].item() == pytest.approx((2 - 1 / 2) ** 2)
    assert terms["loss/sigmoid"].item() == pytest.approx(softplus(-7.0))
    assert (terms["rewards/chosen"].item(), terms["rewards/rejected"].item()) == (-2.0, -9.0)
    with_nll = DPO(loss=("ipo", "sft"), beta=1.0)
    terms = with_nll.loss_terms(logprobs, torch.zeros(2, 1), lengths)
    assert terms["loss"].item() == pytest.approx((2 - 1 / 2) ** 2 + 1.0)
    assert (terms["rewards/chosen"].item(), terms["rewards/rejected"].item()) == (-1.0, -3.0)


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


def test_an_answers_gain_is_measured_from_the_reference_by_unpaired_apo_zero():
    logprobs, reference = torch.tensor([-3.0, -3.0]), torch.tensor([-7.0, -7.0])
    desirable, zero = torch.tensor([True, False]), torch.tensor(0.0)
    terms = KTO(loss="apo_zero_unpaired", beta=0.5).loss_terms(logprobs, reference, desirable, zero)
    gain = 1 / (1 + math.exp(-2.0))
    assert terms["loss"].tolist() == pytest.approx([1 - gain, gain])


@pytest.mark.parametrize("method", [DPO(loss="bco_pair", beta=0.5), KTO(loss="bco", beta=0.5)])
def test_the_shift_of_bco_gets_no_gradient_and_moves_the_even_odds(method):
    logprobs = torch.tensor([-3.0, -3.0], requires_grad=True)
    reference, shift = torch.tensor([-7.0, -7.0]), torch.tensor(2.0)
    if isinstance(method, DPO):
        numbers = (x.view(2, 1) for x in (logprobs, reference, torch.ones(2)))
        terms = method.loss_terms(*numbers, shift=2.0)
    else:
        terms = method.loss_terms(logprobs, reference, torch.tensor([True, False]), shift)
    assert terms["loss"].sum().item() == pytest.approx(2 * math.log(2))
    terms["loss"].sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.25, 0.25])


@catches("DFT's weight with a gradient")
def test_dynamic_fine_tuning_weighs_a_token_by_its_probability():
    logprobs = torch.tensor([0.9, 0.5, 0.01]).log().requires_grad_()
    terms = MaximumLikelihood(loss="dft").loss_terms(logprobs)
    assert terms["loss"].tolist() == pytest.approx([0.0948245, 0.3465736, 0.0460517], abs=1e-6)
    assert terms["nll"].tolist() == pytest.approx([0.1053605, 0.6931472, 4.6051702], abs=1e-6)
    terms["loss"].sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.9, -0.5, -0.01])


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
            algorithm().loss = "other"


@catches("a weighted sum divided by its weights")
def test_a_weighted_sum_of_losses_gives_the_number_of_a_peer():
    # TRL 1.16.0: log-ratios 2 and −1, β = 0.5, chosen tokens of log-probs −0.3 and −0.5
    method = DPO(loss=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0), beta=0.5)
    logprobs = torch.tensor([[-0.8], [-4.0]])
    terms = method.loss_terms(logprobs, torch.tensor([[-2.8], [-3.0]]), torch.full((2, 1), 2.0))
    assert terms["loss"].item() == pytest.approx(0.7185984, abs=1e-6)
    assert terms["loss/sft"].item() == pytest.approx(0.4)


def test_one_loss_and_one_weight_need_no_list():
    method = DPO(loss="hinge", loss_weights=2)
    assert method == DPO(loss=("hinge",), loss_weights=(2.0,))
    terms = method.loss_terms(*torch.tensor([[[-1.0], [-1.0]], [[-1.0], [-1.0]], [[1.0], [1.0]]]))
    assert terms.keys() == {"loss", "rewards/chosen", "rewards/rejected"}
    assert terms["loss"].item() == 2.0
