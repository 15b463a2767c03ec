"""Options of credit: two λs of a critic, rows out of the loss alone, whitened minibatches."""

from dataclasses import replace

import pytest
import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.functional.advantages import length_adaptive_lambda
from lmpg.types import Credit, Minibatch
from tests.algorithms.test_algorithms import rollout_of
from tests.support.planted import catches

G1 = {"rewards": [[1.0, 2, 3]], "values": [[0.5, 1, 1.5]]}  # terminated at the end


@catches("the critic's λ in the advantages", "returns from the advantages' λ")
@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_a_critics_targets_may_have_a_lambda_of_their_own(name):
    """G1: at λ = .8 the advantages, at 1 the sampled returns 5.23, 4.7, 3."""
    fields = {"kl_coef": 0, "gamma": 0.9, "lam": 0.8, "whiten": False}
    credit = ALGORITHMS[name](**fields, lam_critic=1.0).assign_credit(rollout_of(**G1))
    assert credit.advantages_BT[0].tolist() == pytest.approx([3.8696, 3.43, 1.5])
    assert credit.returns_BT[0].tolist() == pytest.approx([5.23, 4.7, 3.0])
    same = ALGORITHMS[name](**fields).assign_credit(rollout_of(**G1))
    torch.testing.assert_close(same.returns_BT - same.advantages_BT, rollout_of(**G1).values_BT)


@catches("the λ of a long response for a short one", "λ by padded lengths")
def test_a_length_adaptive_lambda_is_one_less_one_over_alpha_times_the_length():
    """With α = 5/3 that is .8 for three steps, as in G1, .7 for two, and .4 for one."""
    rewards, values = G1["rewards"] * 3, G1["values"] * 3
    mask = [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    rollout = rollout_of(rewards, values, mask)
    credit = PPO(kl_coef=0, gamma=0.9, lam_alpha=5 / 3, whiten=False).assign_credit(rollout)
    assert credit.advantages_BT[0].tolist() == pytest.approx([3.8696, 3.43, 1.5])
    delta, last = 2 + 0.9 * 1.5 - 1, 1.5
    assert credit.advantages_BT[1].tolist() == pytest.approx([0, delta + 0.9 * 0.7 * last, last])
    torch.testing.assert_close(credit.returns_BT, credit.advantages_BT + rollout.values_BT)


def test_a_length_adaptive_lambda_is_never_below_zero():
    found = length_adaptive_lambda(torch.tensor([[0], [10], [20], [40], [1000]]), 0.05)
    assert found[:, 0].tolist() == pytest.approx([0, 0, 0, 0.5, 0.98])


@catches("rows that are not learned from left out of their group's mean")
def test_rows_that_are_not_learned_from_count_in_their_groups_mean_alone():
    rollout = rollout_of([[0.0, 1], [0, 3], [0, 2], [0, 2]])
    rollout = replace(rollout, learned_B=torch.tensor([True, False, True, True]))
    credit = GRPO(group_size=2, advantage="centred").assign_credit(rollout)
    batch = Minibatch.of(rollout, credit)
    assert credit.advantages_BT.tolist() == [[-1, -1], [1, 1], [0, 0], [0, 0]]
    assert batch.mask_BT.tolist() == [[True, True], [False, False], [True, True], [True, True]]
    assert batch.advantages_BT.tolist() == [[-1, -1], [0, 0], [0, 0], [0, 0]]


@catches("whitening that counts padding, or is left out")
def test_whitening_a_minibatch_standardises_the_advantages_of_its_steps():
    rollout = rollout_of([[1.0, 2], [3, 4], [0, 9]], mask=[[1, 1], [1, 1], [0, 0]])
    batch = Minibatch.of(rollout, Credit(rollout.rewards_BT, rollout.rewards_BT)).whitened()
    expected = [-1.161895, -0.387298, 0.387298, 1.161895, 0, 0]  # G4
    assert batch.advantages_BT.flatten().tolist() == pytest.approx(expected, abs=1e-6)
