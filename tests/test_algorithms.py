"""What each algorithm makes of a rollout, as numbers."""

import pydantic
import pytest
import torch

from lmpg.algorithms import ALGORITHMS, GRPO, PPO, REINFORCE
from lmpg.types import Credit, Evaluation, Minibatch, Rollout


def rollout_of(rewards, values=None, mask=None, scorable=None, baseline=None, truncated=False):
    """Rows that end at their last step, with log-probs 0.1 above the reference's everywhere."""
    rewards_BT = torch.tensor(rewards)
    mask_BT = torch.ones_like(rewards_BT).bool() if mask is None else torch.tensor(mask).bool()
    ended_BT = torch.zeros_like(mask_BT)
    ended_BT[:, -1] = True
    values_BT = torch.zeros_like(rewards_BT) if values is None else torch.tensor(values)
    logprobs_BT = torch.full_like(rewards_BT, -1.0)
    return Rollout(
        inputs={},
        mask_BT=mask_BT,
        logprobs_BT=logprobs_BT,
        rewards_BT=rewards_BT,
        terminated_BT=torch.zeros_like(ended_BT) if truncated else ended_BT,
        ended_BT=ended_BT,
        scorable_B=torch.tensor(scorable or [True] * len(rewards)),
        values_BT=values_BT,
        next_values_BT=torch.cat([values_BT[:, 1:], torch.full((len(rewards), 1), 7.0)], 1),
        ref_logprobs_BT=logprobs_BT - 0.1,
        baseline=baseline,
    )


def test_ppo_whitens_advantages_but_not_returns():
    rollout = rollout_of([[1.0, 2, 3], [0, 0, 9]], values=[[0.5, 1, 1.5], [0, 0, 0]])
    plain = PPO(kl_coef=0, gamma=0.9, lam=0.8, whiten=False).assign_credit(rollout)
    white = PPO(kl_coef=0, gamma=0.9, lam=0.8, whiten=True).assign_credit(rollout)
    assert plain.advantages_BT[0].tolist() == pytest.approx([3.8696, 3.43, 1.5], abs=1e-6)
    torch.testing.assert_close(white.returns_BT, plain.advantages_BT + rollout.values_BT)
    assert white.advantages_BT.mean().item() == pytest.approx(0, abs=1e-6)
    assert white.advantages_BT.std().item() == pytest.approx(1, abs=1e-6)


def test_ppo_pays_the_kl_penalty_on_every_chosen_step():
    rollout = rollout_of([[0.0, 0, 1]], mask=[[1, 0, 1]])
    credit = PPO(kl_coef=2.0, whiten=False, lam=1.0).assign_credit(rollout)
    assert credit.rewards_BT[0].tolist() == pytest.approx([-0.2, 0.0, 0.8])
    assert credit.advantages_BT[0].tolist() == pytest.approx([0.6, 0.0, 0.8])


def test_truncation_bootstraps_but_termination_does_not():
    for truncated, expected in ((True, 1 + 0.9 * 7), (False, 1.0)):
        rollout = rollout_of([[0.0, 1.0]], truncated=truncated)
        credit = PPO(kl_coef=0, whiten=False, gamma=0.9).assign_credit(rollout)
        assert credit.advantages_BT[0, 1].item() == pytest.approx(expected)


def test_reinforce_returns_are_rewards_to_go_less_the_baseline():
    rewards = [[1.0, 2, 3], [0, 0, 6]]

    def advantages(**fields):
        algorithm = REINFORCE(kl_coef=0, **fields)
        rollout = rollout_of(
            rewards, values=[[1.0, 1, 1], [2, 2, 2]], baseline=fields.pop("seen", None)
        )
        return algorithm.assign_credit(rollout).advantages_BT

    assert advantages(baseline="none").tolist() == [[6, 5, 3], [6, 6, 6]]
    mean = 32 / 6
    expected = torch.tensor([[6.0, 5, 3], [6, 6, 6]])
    torch.testing.assert_close(advantages(baseline="batch_mean"), expected - mean)
    torch.testing.assert_close(
        advantages(baseline="value"), expected - torch.tensor([[1.0], [2.0]])
    )
    discounted = advantages(baseline="none", gamma=0.5)
    assert discounted[0].tolist() == pytest.approx([1 + 1 + 0.75, 2 + 1.5, 3])


def test_reinforces_running_baseline_is_the_earlier_rollouts_mean_return():
    algorithm = REINFORCE(kl_coef=0, baseline="ema")
    later = algorithm.assign_credit(rollout_of([[0.0, 2], [0, 4]], baseline=torch.tensor(1.0)))
    assert later.advantages_BT.tolist() == [[1, 1], [3, 3]]
    first = algorithm.assign_credit(rollout_of([[0.0, 2], [0, 4]]))
    assert first.advantages_BT.tolist() == [[-1, -1], [1, 1]]


def test_grpo_compares_the_responses_to_one_prompt_with_each_other():
    rewards = [[0.0, 1], [0, 3], [0, 10], [0, 10]]
    mask = [[1, 1], [0, 1], [1, 1], [1, 1]]
    centred = GRPO(group_size=2, advantage="centred").assign_credit(rollout_of(rewards, mask=mask))
    assert centred.advantages_BT.tolist() == [[-1, -1], [0, 1], [0, 0], [0, 0]]
    standardised = GRPO(group_size=2).assign_credit(rollout_of(rewards, mask=mask))
    assert standardised.advantages_BT[0, 0].item() == pytest.approx(-(0.5**0.5), abs=1e-5)
    others = GRPO(group_size=2, advantage="leave_one_out").assign_credit(rollout_of(rewards))
    assert others.advantages_BT[:2, 0].tolist() == [-2, 2]


def test_a_response_without_a_score_does_not_move_its_group():
    rewards = [[1.0], [3.0], [999.0], [0.0], [4.0], [8.0]]
    rollout = rollout_of(rewards, scorable=[True, True, False, True, True, True])
    found = GRPO(group_size=3, advantage="centred").assign_credit(rollout).advantages_BT
    assert found[:, 0].tolist() == [-1, 1, 0, -4, 0, 4]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_entropy_bonus_lowers_the_loss_of_a_wider_policy(name):
    algorithm = ALGORITHMS[name](entropy_coef=0.5)
    rollout = rollout_of([[0.0, 1.0]] * 8)
    batch = Minibatch.of(rollout, Credit(rollout.rewards_BT, rollout.rewards_BT))
    new = Evaluation(rollout.logprobs_BT, torch.full((8, 2), 2.0), rollout.values_BT)
    batch = Minibatch(**{**vars(batch), "returns_BT": rollout.rewards_BT})
    assert (algorithm.loss_terms(new, batch)["entropy"] == -1.0).all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_reference_is_needed_only_with_a_kl_term(name):
    assert "reference" in ALGORITHMS[name](kl_coef=0.1).needs
    assert "reference" not in ALGORITHMS[name](kl_coef=0.0).needs


def test_a_critic_is_needed_by_ppo_and_by_the_value_baseline():
    assert "critic" in PPO().needs
    assert "critic" in REINFORCE(baseline="value").needs
    assert "critic" not in REINFORCE().needs | GRPO().needs


def test_a_group_of_one_is_refused():
    with pytest.raises(pydantic.ValidationError, match="group_size"):
        GRPO(group_size=1)


def test_k1_in_the_loss_is_refused():
    with pytest.raises(pydantic.ValidationError, match="kl_estimator"):
        GRPO(kl_coef=0.1, kl_estimator="k1")


def test_a_rollout_with_crossed_shapes_is_refused():
    rollout = rollout_of([[0.0, 1.0]])
    with pytest.raises(ValueError, match="values_BT has shape"):
        Rollout(**{**vars(rollout), "values_BT": torch.zeros(2, 1)})
    with pytest.raises(ValueError, match="must be bool"):
        Rollout(**{**vars(rollout), "mask_BT": torch.ones(1, 2)})
