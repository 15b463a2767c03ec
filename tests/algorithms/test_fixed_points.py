"""G15: where each algorithm with a KL term arrives on the bandit, through the real update."""

import itertools

import pytest
import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.algorithms.a2c import A2C
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.off_policy import OffPolicy
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.raft import RAFT
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.algorithms.rloo import RLOO
from tests.support.bandit import OPTIMUM, REFERENCE, REWARDS, trained_probabilities
from tests.support.planted import catches

GROUPED = ("grpo", "gspo", "gmpo", "cispo", "sapo")
IN_LOSS = {"kl_coef": 1.0, "kl_in": "loss"}
AT_THE_OPTIMUM = [
    *(REINFORCE(kl_coef=1.0, baseline=b) for b in ("none", "batch_mean", "ema", "value")),
    *(REINFORCE(**IN_LOSS, kl_estimator=k) for k in ("k2", "k3")),
    *(PPO(kl_coef=1.0, whiten=w) for w in (False, True)),
    PPO(kl_coef=1.0, dual_clip=3.0),
    PPO(kl_coef=1.0, clip=None, penalty_coef=1.0),
    PPO(**IN_LOSS, whiten=False),
    RLOO(kl_coef=1.0),
    RLOO(**IN_LOSS),
    ALGORITHMS["remax"](kl_coef=1.0),
    ALGORITHMS["remax"](**IN_LOSS, kl_estimator="k2"),
    ReinforcePlusPlus(kl_coef=1.0),
    A2C(kl_coef=1.0),
    *(RAFT(kl_coef=1.0, group_size=4, keep=n) for n in (1, 2)),  # all penalised scores are equal
    *(OffPolicy(kl_coef=1.0, ratio=level) for level in ("token", "decision", "sequence")),
    *(
        ALGORITHMS[name](**IN_LOSS, kl_estimator=k, advantage="leave_one_out")
        for name in GROUPED
        for k in ("k2", "k3")
    ),
]


def named(algorithm):
    changed = algorithm.model_dump(exclude_defaults=True).values()
    return f"{type(algorithm).__name__}-{'-'.join(map(str, changed))}"


@catches("KL in the loss is taken from the reward as well")
@pytest.mark.parametrize("algorithm", AT_THE_OPTIMUM, ids=named)
def test_the_kl_regularised_optimum_is_the_fixed_point(algorithm):
    torch.testing.assert_close(trained_probabilities(algorithm), OPTIMUM, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "algorithm", [PPO(kl_coef=1.0), OffPolicy(kl_coef=1.0), ReinforcePlusPlus(kl_coef=1.0)]
)
def test_the_optimum_is_reached_in_several_epochs_on_each_rollout_too(algorithm):
    found = trained_probabilities(algorithm, epochs=4, minibatch_size=512, steps=150)
    torch.testing.assert_close(found, OPTIMUM, atol=0.02, rtol=0)


def enumerated_fixed_point(advantage, group_size, whole_batch=False):
    """Where E[Σ A_i ∇log π(a_i)]/G = ∇KL, by enumerating every group of arms; with `whole_batch`
    the advantages are divided by their standard deviation over all groups."""
    theta = REFERENCE.log().double()
    ref = REFERENCE.log().double()
    groups = torch.tensor(list(itertools.product(range(3), repeat=group_size)))
    advantages = advantage(REWARDS.double()[groups])
    for _ in range(4000):
        logprobs = theta.log_softmax(0)
        probs = logprobs.exp()
        weights = probs[groups].prod(1)
        per_arm = torch.stack([(advantages * (groups == a)).sum(1) for a in range(3)], 1)
        gradient = (weights[:, None] * per_arm).sum(0) / group_size
        gradient = gradient - probs * gradient.sum()  # Σ advantages is 0 in most groups, not in all
        if whole_batch:
            gradient = (
                gradient / (weights[:, None] * advantages.square()).sum().div(group_size).sqrt()
            )
        kl = (probs * (logprobs - ref)).sum()
        theta = theta + 0.5 * (gradient - probs * (logprobs - ref - kl))
    return theta.softmax(0).float()


def centred(scores):
    return scores - scores.mean(1, keepdim=True)


def standardised(scores):
    return centred(scores) / (scores.std(1, keepdim=True) + 1e-6)


def assert_own_fixed_point(algorithm, expected):
    assert (expected - OPTIMUM).abs().max() > 0.03
    found = trained_probabilities(algorithm, rows=2040)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("group_size", [4, 6])
@pytest.mark.parametrize("name", GROUPED)
def test_dividing_by_the_groups_spread_moves_the_fixed_point(name, group_size):
    expected = enumerated_fixed_point(standardised, group_size)
    assert_own_fixed_point(ALGORITHMS[name](**IN_LOSS, group_size=group_size), expected)


def test_centring_on_a_mean_that_holds_the_sample_itself_moves_it_too():
    algorithm = GRPO(**IN_LOSS, group_size=4, advantage="centred")
    assert_own_fixed_point(algorithm, enumerated_fixed_point(centred, 4))


def test_grpo_arrives_where_the_batchs_spread_and_the_mean_of_scores_lead():
    spread = GRPO(**IN_LOSS, group_size=4, advantage="batch_standardised")
    assert_own_fixed_point(spread, enumerated_fixed_point(centred, 4, whole_batch=True))
    relative = GRPO(**IN_LOSS, group_size=4, advantage="relative")

    def by_mean(scores):
        return centred(scores) / scores.mean(1, keepdim=True).clamp(min=1e-9)

    assert_own_fixed_point(relative, enumerated_fixed_point(by_mean, 4))


def test_reinforce_plus_plus_with_groups_arrives_where_the_batchs_spread_leads():
    algorithm = ReinforcePlusPlus(**IN_LOSS, kl_estimator="k2", group_size=4, baseline="group_mean")
    assert_own_fixed_point(algorithm, enumerated_fixed_point(centred, 4, whole_batch=True))


def test_plain_k3_arrives_where_the_forward_kl_balances_the_reward():
    """max Σ π r − β KL(π_ref ‖ π): r_i + β π_ref,i/π_i is one number μ for all arms."""
    low, high = 2.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        too_much = (REFERENCE / (middle - REWARDS)).sum() > 1
        low, high = (middle, high) if too_much else (low, middle)
    expected = REFERENCE / (high - REWARDS)
    assert (expected - OPTIMUM).abs().max() > 0.03
    found = trained_probabilities(REINFORCE(**IN_LOSS, kl_estimator="plain_k3"))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_every_algorithm_with_a_kl_term_is_here():
    tested = {type(algorithm) for algorithm in AT_THE_OPTIMUM}
    penalised = {a for a in ALGORITHMS.values() if "kl_coef" in a.model_fields}
    assert tested == penalised
