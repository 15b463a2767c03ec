"""What each algorithm makes of a rollout, as numbers."""

from dataclasses import replace

import pydantic
import pytest
import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.off_policy import OffPolicy
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.algorithms.remax import ReMax
from lmpg.algorithms.rloo import RLOO
from lmpg.types import Credit, Evaluation, Minibatch, Rollout
from tests.support.planted import catches

GROUPED = ("grpo", "gspo", "gmpo", "cispo", "sapo", "rloo")
PENALISED = [name for name in ALGORITHMS if "kl_coef" in ALGORITHMS[name].model_fields]


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


@catches("returns from whitened advantages")
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


@catches("rewards-to-go bootstrap without a critic")
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
    weighed = advantages(baseline="none", gamma=0.5, gamma_t=True)  # G13: of the discounted return
    assert weighed[0].tolist() == pytest.approx([1 + 1 + 0.75, 0.5 * (2 + 1.5), 0.25 * 3])


def test_reinforces_running_baseline_is_the_earlier_rollouts_mean_return():
    algorithm = REINFORCE(kl_coef=0, baseline="ema")
    later = algorithm.assign_credit(rollout_of([[0.0, 2], [0, 4]], baseline=torch.tensor(1.0)))
    assert later.advantages_BT.tolist() == [[1, 1], [3, 3]]
    first = algorithm.assign_credit(rollout_of([[0.0, 2], [0, 4]]))
    assert first.advantages_BT.tolist() == [[-1, -1], [1, 1]]


@catches("groups formed across prompts")
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


@catches("entropy bonus as a penalty")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_entropy_bonus_lowers_the_loss_of_a_wider_policy(name):
    algorithm = ALGORITHMS[name](entropy_coef=0.5)
    rollout = rollout_of([[0.0, 1.0]] * 8)
    batch = Minibatch.of(rollout, Credit(rollout.rewards_BT, rollout.rewards_BT))
    new = Evaluation(rollout.logprobs_BT, torch.full((8, 2), 2.0), rollout.values_BT)
    batch = Minibatch(**{**vars(batch), "returns_BT": rollout.rewards_BT})
    assert (algorithm.loss_terms(new, batch)["entropy"] == -1.0).all()


@pytest.mark.parametrize("name", PENALISED)
def test_a_reference_is_needed_only_with_a_kl_term(name):
    assert "reference" in ALGORITHMS[name](kl_coef=0.1).needs
    assert "reference" not in ALGORITHMS[name](kl_coef=0.0).needs


def test_a_critic_is_needed_by_ppo_and_by_the_value_baseline():
    assert "critic" in PPO().needs
    assert "critic" in REINFORCE(baseline="value").needs
    assert "critic" not in REINFORCE().needs | GRPO().needs


@catches("k1 allowed in the loss")
@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        *((name, {"group_size": 1}, "group_size") for name in (*GROUPED, "raft")),
        ("reinforce_plus_plus", {"baseline": "group_mean"}, "nothing to compare with"),
        *(
            (name, {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k1"}, "gradient is zero")
            for name in PENALISED
        ),
        ("raft", {"keep": 8}, "leaves none out"),
        ("raft", {"kl_in": "loss", "kl_coef": 0.1}, "best responses"),
        ("grpo", {"advantage": "relative", "kl_in": "reward", "kl_coef": 0.1}, "negative"),
        ("ppo", {"kl_coef": 0.0, "kl_target": 3.0}, "no controller can change"),
        ("ppo", {"dual_clip": 0.5}, "dual_clip"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(name, fields, reason):
    with pytest.raises(pydantic.ValidationError, match=reason):
        ALGORITHMS[name](**fields)


@catches("RLOO: the mean holds the sample itself")
def test_rloo_compares_with_the_others_alone_and_the_kl_is_part_of_the_score():
    rollout = rollout_of([[0.0, 1], [0, 2], [0, 3], [0, 4]])
    found = RLOO(kl_coef=0, group_size=4).assign_credit(rollout).advantages_BT
    assert found[:, 0].tolist() == pytest.approx([-2, -2 / 3, 2 / 3, 2])  # G5
    mask = [[0, 1], [1, 1], [1, 1], [1, 1]]  # the first has one step less that costs 0.1
    rollout = rollout_of([[0.0, 1], [0, 1], [0, 1], [0, 1]], mask=mask)
    found = RLOO(kl_coef=2.0, group_size=4).assign_credit(rollout).advantages_BT
    assert found[:, 1].tolist() == pytest.approx([0.2, -0.2 / 3, -0.2 / 3, -0.2 / 3])


@catches("ReMax: KL not summed from each step on", "ReMax: greedy score of another prompt")
def test_remax_subtracts_the_greedy_score_of_the_same_prompt():
    rollout = replace(rollout_of([[0.0, 3], [0, 1]]), greedy_scores_B=torch.tensor([1.0, 2.0]))
    assert ReMax(kl_coef=0).assign_credit(rollout).advantages_BT.tolist() == [[2, 2], [-1, -1]]
    penalised = ReMax(kl_coef=1.0).assign_credit(rollout).advantages_BT
    assert penalised[0].tolist() == pytest.approx([3 - 0.2 - 1, 3 - 0.1 - 1])
    assert "greedy" in ReMax().needs


@catches("REINFORCE++: masked steps enter the statistics")
def test_reinforce_plus_plus_standardises_rewards_to_go_over_the_whole_batch():
    rollout = rollout_of([[1.0, 2], [0, 4]], mask=[[1, 1], [0, 1]])
    found = ReinforcePlusPlus(kl_coef=0).assign_credit(rollout).advantages_BT
    to_go = torch.tensor([3.0, 2, 4])
    expected = (to_go - to_go.mean()) / to_go.std()
    torch.testing.assert_close(found[rollout.mask_BT], expected)
    assert found[1, 0] == 0


@catches("REINFORCE++-baseline divides by each group's spread")
def test_reinforce_plus_plus_baseline_centres_per_group_and_scales_per_batch():
    rollout = rollout_of([[1.0], [3.0], [10.0], [20.0]])
    algorithm = ReinforcePlusPlus(kl_coef=0, group_size=2, baseline="group_mean")
    centred = torch.tensor([-1.0, 1, -5, 5])
    found = algorithm.assign_credit(rollout).advantages_BT[:, 0]
    torch.testing.assert_close(found, centred / centred.std())
    assert (algorithm.per_step, ReinforcePlusPlus().per_step) == (False, True)


def test_off_policy_subtracts_the_batch_mean_unless_told_not_to():
    rollout = rollout_of([[1.0, 2], [0, 5]])  # rewards to go: 3, 2 and 5, 5
    found = OffPolicy(kl_coef=0).assign_credit(rollout).advantages_BT
    assert found.tolist() == [[-0.75, -1.75], [1.25, 1.25]]
    plain = OffPolicy(kl_coef=0, baseline="none").assign_credit(rollout).advantages_BT
    assert plain.tolist() == [[3, 2], [5, 5]]


@catches("PPO's penalty is the KL the other way round")
def test_ppos_penalty_is_the_kl_from_the_old_policy_to_the_new():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4])  # G10
    ones = torch.ones(1, 2).bool()
    zeros = torch.zeros(1, 2)
    batch = Minibatch({}, ones, p.log()[None], zeros, zeros, zeros)
    new = Evaluation(q.log()[None], zeros, zeros)
    term = PPO(clip=None, penalty_coef=2.0).loss_terms(new, batch)["penalty"]
    assert (p * term[0]).sum().item() == pytest.approx(2 * 0.02041100, rel=1e-5)


@pytest.mark.parametrize("name", GROUPED)
def test_the_group_methods_share_grpos_credit(name):
    rollout = rollout_of([[1.0], [2.0], [3.0], [4.0]])
    fields = {"group_size": 4, "advantage": "centred"} if name != "rloo" else {"group_size": 4}
    found = ALGORITHMS[name](kl_coef=0, **fields).assign_credit(rollout).advantages_BT[:, 0]
    assert (found / found[3] * 1.5).tolist() == pytest.approx([-1.5, -0.5, 0.5, 1.5])  # G5
    assert not ALGORITHMS[name].per_step


def test_a_rollout_with_crossed_shapes_is_refused():
    rollout = rollout_of([[0.0, 1.0]])
    with pytest.raises(ValueError, match="values_BT has shape"):
        Rollout(**{**vars(rollout), "values_BT": torch.zeros(2, 1)})
    with pytest.raises(ValueError, match="must be bool"):
        Rollout(**{**vars(rollout), "mask_BT": torch.ones(1, 2)})
