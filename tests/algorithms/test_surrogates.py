"""Gradients as language models estimate them, of batches used before, and natural ones.

Against the gradient that is calculated, over 200,000 episodes of the problem of `test_estimators`;
whoever is said to be unbiased has no component more than 3 of its standard errors away.
"""

from __future__ import annotations

import numpy as np
import pytest

from lmpg.gym.classic.exact.comparison import HORIZON, compared, setting
from lmpg.gym.classic.exact.disturbed import disturbed_gradients
from lmpg.gym.classic.exact.exact_values import visitation
from lmpg.gym.classic.exact.gradients import natural_gradient
from lmpg.gym.classic.exact.measuring import quality
from lmpg.gym.classic.exact.natural_estimates import natural_gradients
from lmpg.gym.classic.exact.reused import moved, surrogate_credits_of
from lmpg.gym.classic.exact.sampled_episodes import sampled_episodes
from lmpg.gym.classic.exact.without_critic import credits_without_critic
from tests.support.planted import catches

NUM_EPISODES, G = 200_000, 4


@pytest.fixture(scope="module")
def on_policy():
    s = setting()
    found = compared(s, credits_without_critic(s, G), s.pi_SA, NUM_EPISODES, seed=4, group_size=G)
    return {name: q for name, (q, _) in found.items()}


@pytest.fixture(scope="module")
def reused():
    """Per surrogate, with the policy hardly moved, and moved beyond the clip range."""
    found = {}
    for kl in (0.003, 0.02):
        s = moved(setting(), kl)
        credits = surrogate_credits_of(s)
        for name, (q, _) in compared(s, credits, s.mu_SA, NUM_EPISODES, seed=5).items():
            found[name, kl] = q
    return found


@catches("a baseline that holds the sample itself called leave-one-out")
@pytest.mark.parametrize("name", ["no baseline", "RLOO", "ReMax", "PPO"])
def test_baselines_that_do_not_hold_the_sample_itself_are_unbiased(on_policy, name):
    assert on_policy[name].largest_error < 3


def test_a_groups_own_mean_shrinks_the_gradient_by_one_over_g(on_policy):
    truth = np.linalg.norm(setting().truth_OA)
    shrunk = on_policy["Dr. GRPO"]
    assert shrunk.length == pytest.approx((1 - 1 / G) * truth, rel=0.02)
    assert shrunk.angle < 1
    assert shrunk.noise == pytest.approx(on_policy["RLOO"].noise, rel=1e-6)  # a constant factor


@pytest.mark.parametrize("name", ["GRPO", "REINFORCE++"])
def test_dividing_by_a_deviation_changes_the_length_above_all(on_policy, name):
    assert on_policy[name].largest_error > 100
    assert on_policy[name].angle < 2


def test_any_baseline_divides_the_variance_by_ten_and_a_good_critic_by_fifty(on_policy):
    alone = on_policy["no baseline"].variance
    assert max(on_policy[name].variance for name in ("RLOO", "ReMax")) < alone / 10
    assert on_policy["PPO"].variance < alone / 50


@catches("γ^t twice in a surrogate's slope")
def test_only_the_product_of_all_ratios_is_unbiased_on_a_batch_that_was_used(reused):
    for name, kl in reused:
        unbiased = name == "ratio of the whole episode"
        assert (reused[name, kl].largest_error < 3) == unbiased, name


def test_within_its_range_the_clip_does_nothing_and_beyond_it_points_back(reused):
    plain, clipped = "ratio of the step (CPI surrogate)", "PPO, GRPO: clip 0.2"
    assert reused[clipped, 0.003] == reused[plain, 0.003]
    assert reused[plain, 0.02].angle < 3
    assert reused[clipped, 0.02].angle > 80


def test_the_bias_of_leaving_ratios_out_grows_with_the_distance(reused):
    near, far = (reused["REINFORCE, A2C: no ratio", kl].bias for kl in (0.003, 0.02))
    assert far > 1.5 * near
    for kl in (0.003, 0.02):
        with_ratio = reused["ratio of the step (CPI surrogate)", kl].bias
        assert with_ratio < reused["REINFORCE, A2C: no ratio", kl].bias


def test_the_published_clip_of_gspo_ends_its_way_where_ppos_has_not_begun(reused):
    assert reused["GSPO: clip 0.0003, 0.0004", 0.003].length < 0.05


@catches("KL(new‖old) for how far a policy was moved")
def test_the_policy_is_moved_as_far_as_was_asked_and_uphill():
    s = setting()
    far = moved(s, 0.02)
    assert np.array_equal(far.mu_SA, s.pi_SA)
    step_OA = far.theta_OA - s.theta_OA
    cosine = (step_OA * s.truth_OA).sum() / np.linalg.norm(step_OA) / np.linalg.norm(s.truth_OA)
    assert cosine == pytest.approx(1)
    rho_S = visitation(s.mdp, s.pi_SA, 1.0)
    kl_S = (far.mu_SA * np.log(far.mu_SA / far.pi_SA)).sum(1)
    assert rho_S @ kl_S / rho_S.sum() == pytest.approx(0.02)
    start = moved(s, 0.0)
    np.testing.assert_allclose(start.pi_SA, s.pi_SA, atol=1e-12)


@catches("responses of a group to different prompts")
def test_the_episodes_of_a_group_start_alike_and_go_on_differently():
    s, rng = setting(), np.random.default_rng(0)
    episodes = sampled_episodes(s.mdp, s.pi_SA, 400, HORIZON, rng, group_size=G)
    states_PGT = episodes.states_NT.view(-1, G, HORIZON)
    assert (states_PGT[:, :, 0] == states_PGT[:, :1, 0]).all()
    assert len(set(states_PGT[:, 0, 0].tolist())) == 3
    assert (states_PGT[:, :, 1] != states_PGT[:, :1, 1]).any()


@catches("differences on both sides not halved")
def test_finite_differences_are_the_gradient_but_for_their_disturbances_size():
    s, rng = setting(), np.random.default_rng(6)
    found = {
        size: quality(disturbed_gradients(s, 16, size, NUM_EPISODES // 32, rng), s.truth_OA, 32)
        for size in (0.3, 1.0)
    }
    assert found[0.3].bias < 4 * found[0.3].standard_error
    assert found[1.0].largest_error > 20
    assert found[1.0].variance < found[0.3].variance / 8  # as 1/size²


@catches("a Fisher matrix that is no mean over states, or not over the policy's actions")
def test_natural_gradients_of_batches_are_those_of_the_whole_with_less_noise_than_the_plain_one():
    s, rng = setting(), np.random.default_rng(8)
    plain_OA, natural_OA = s.truth_OA, natural_gradient(s.mdp, s.theta_OA)
    for size, percent in ((1000, 0.5), (4, 2.0)):
        found = natural_gradients(s, size, NUM_EPISODES // size, 0.95, rng)
        plain = quality(found.pop("gradient"), plain_OA, size)
        together = quality(found.pop("natural gradient, F of all batches"), natural_OA, size)
        assert plain.largest_error < 3
        assert together.largest_error < 3
        for name, samples_KD in found.items():
            q = quality(samples_KD, natural_OA, size)
            assert q.largest_error < 3 or size == 4, name  # the matrix of 20 steps is a rough one
            assert q.bias < percent / 100 * np.linalg.norm(natural_OA), name
            assert q.noise < 0.95 * min(plain.noise, together.noise), name
