"""G1, G2, G4, G5: advantages against worked numbers, slow loops and invariances."""

import pytest
import torch

from lmpg.functional.advantages import (
    batch_standardised,
    explained_variance,
    gae,
    group_centred,
    group_standardised,
    leave_one_out,
    length_weighted,
    n_step_advantages,
    next_in_mask,
    relative_to_mean,
)
from lmpg.functional.masking import WHITEN_EPS, loss_weights, masked_mean, masked_variance, whitened
from tests.support.planted import catches

R, V = [1.0, 2.0, 3.0], [0.5, 1.0, 1.5]


def advantages(next_values, terminated=(0, 0, 0), ended=(0, 0, 0), lam=0.8, mask=(1, 1, 1)):
    row = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    flag = lambda x: torch.tensor([x]).bool()  # noqa: E731
    found = gae(
        row(R), row(V), row(next_values), flag(terminated), flag(ended), flag(mask), 0.9, lam
    )
    return found[0].tolist()


@catches(
    "GAE's trace leaks over the end of an episode",
    "GAE bootstraps after termination",
    "λ missing from GAE's trace",
)
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"next_values": [1, 1.5, 2]}, [4.80272, 4.726, 3.3]),
        (
            {"next_values": [1, 1.5, 9], "terminated": (0, 0, 1), "ended": (0, 0, 1)},
            [3.8696, 3.43, 1.5],
        ),
        ({"next_values": [1, 1.5, 4], "ended": (0, 0, 1)}, [5.73584, 6.022, 5.1]),
        (
            {"next_values": [1, 1.5, 2], "terminated": (0, 1, 0), "ended": (0, 1, 0)},
            [2.12, 1.0, 3.3],
        ),
        ({"next_values": [1, 4, 2], "ended": (0, 1, 0)}, [4.712, 4.6, 3.3]),
        ({"next_values": [1, 1.5, 2], "lam": 0.0}, [1.4, 2.35, 3.3]),
        ({"next_values": [1, 1.5, 2], "lam": 1.0}, [6.188, 5.32, 3.3]),
    ],
    ids=["open", "terminated", "truncated", "terminated-inside", "truncated-inside", "λ=0", "λ=1"],
)
def test_gae_gives_the_worked_numbers_of_g1(case, expected):
    assert advantages(**case) == pytest.approx(expected, abs=1e-9)


def test_returns_of_g1_are_advantage_plus_value():
    found = torch.tensor(advantages([1, 1.5, 2])) + torch.tensor(V)
    assert found.tolist() == pytest.approx([5.30272, 5.726, 4.8], abs=1e-6)


def long_episode(value, num_episodes=1, length=64):
    """Reward 1 at each episode's last step; several episodes stand in one row."""
    steps = num_episodes * length
    rewards = torch.zeros(1, steps, dtype=torch.float64)
    rewards[0, length - 1 :: length] = 1
    ended = rewards.bool()
    values = torch.full_like(rewards, value)
    return gae(rewards, values, values, ended, ended, torch.ones_like(ended), 0.99, 0.9)[0]


@catches("the scan of advantages sees some steps twice")
def test_long_episode_of_g2_discounts_by_gamma_lambda():
    found = long_episode(0.0)
    t = torch.arange(64)
    torch.testing.assert_close(found, (0.99 * 0.9) ** (63.0 - t).double())
    assert found[0].item() == pytest.approx(0.000695, abs=1e-6)
    assert found[62].item() == pytest.approx(0.891)


def test_long_episode_of_g2_with_a_constant_critic():
    found = long_episode(1.0)
    assert found[0].item() == pytest.approx(-0.091679, abs=1e-6)
    assert found[62].item() == pytest.approx(-0.01)
    assert found[63].item() == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_episodes_in_one_row_do_not_leak_into_one_another(value):
    torch.testing.assert_close(long_episode(value, 3), long_episode(value).repeat(3))


def test_gae_equals_the_double_sum_over_later_deltas():
    g = torch.Generator().manual_seed(0)
    rewards, values, after = torch.rand(3, 4, 7, generator=g, dtype=torch.float64)
    terminated = torch.rand(4, 7, generator=g) < 0.2
    ended = terminated | (torch.rand(4, 7, generator=g) < 0.2)
    found = gae(rewards, values, after, terminated, ended, torch.ones_like(ended), 0.9, 0.7)
    for b in range(4):
        for t in range(7):
            total, weight = 0.0, 1.0
            for k in range(t, 7):
                bootstrap = 0.0 if terminated[b, k] else 0.9 * after[b, k]
                total += weight * (rewards[b, k] + bootstrap - values[b, k])
                weight *= 0.9 * 0.7
                if ended[b, k]:
                    break
            torch.testing.assert_close(found[b, t], total)


@catches("n-step advantages of n + 1 steps")
def test_n_step_advantages_of_g1_are_sums_of_rewards_and_one_value():
    row = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    no, yes = torch.zeros(1, 3).bool(), torch.ones(1, 3).bool()
    found = [
        n_step_advantages(row(R), row(V), row([1, 1.5, 2]), no, no, yes, 0.9, n)[0].tolist()
        for n in (1, 2, 3, 9)
    ]
    assert found[0] == pytest.approx([1.4, 2.35, 3.3])
    assert found[1] == pytest.approx([1 + 1.8 + 0.81 * 1.5 - 0.5, 2 + 2.7 + 0.81 * 2 - 1, 3.3])
    assert found[2] == pytest.approx([1 + 1.8 + 2.43 + 0.729 * 2 - 0.5, 5.32, 3.3])
    assert found[3] == found[2]


@catches(
    "n-step advantages cross the end of an episode, or bootstrap after it",
    "the scan of advantages stops at masked steps",
)
def test_gae_is_the_mixture_of_all_n_step_advantages():
    g = torch.Generator().manual_seed(3)
    rewards, values, after = torch.rand(3, 50, 7, generator=g, dtype=torch.float64)
    terminated = torch.rand(50, 7, generator=g) < 0.1
    ended = terminated | (torch.rand(50, 7, generator=g) < 0.1)
    mask = torch.rand(50, 7, generator=g) < 0.8
    known = (rewards, values, after, terminated, ended, mask, 0.9)
    lam, mixture = 0.7, torch.zeros(50, 7, dtype=torch.float64)
    for n in range(1, 7):
        mixture += (1 - lam) * lam ** (n - 1) * n_step_advantages(*known, n)
    mixture += lam**6 * n_step_advantages(*known, 7)  # the sum ends with the row
    torch.testing.assert_close(mixture, gae(*known, lam))


@catches("GAE's sum takes in steps the policy did not choose, or their values")
def test_gae_bridges_over_steps_the_policy_did_not_choose():
    mask = torch.tensor([[1, 0, 1, 0, 0, 1, 0]]).bool()
    where = mask[0].nonzero()[:, 0]
    short = {"rewards": [1.0, 2, 3], "values": [0.5, 1, 1.5]}
    rewards, values = torch.full((2, 1, 7), torch.nan)
    rewards[0, where] = torch.tensor(short["rewards"])
    values[0, where] = torch.tensor(short["values"])
    ended = torch.zeros_like(mask)
    ended[0, 5] = True
    found = gae(rewards, values, next_in_mask(values, mask), ended, ended, mask, 0.9, 0.8)
    assert found[0, where].tolist() == pytest.approx([3.8696, 3.43, 1.5], abs=1e-6)
    assert found[0][~mask[0]].tolist() == [0, 0, 0, 0]


def test_next_chosen_is_the_value_at_the_next_marked_step():
    values = torch.tensor([[1.0, 2, 3, 4]])
    mask = torch.tensor([[True, False, True, False]])
    assert next_in_mask(values, mask).tolist() == [[3, 3, 0, 0]]


@catches("whitening with the biased std")
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_whitening_uses_the_unbiased_std_of_g4(shift):
    x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64) + shift
    found = whitened(x, torch.ones(4).bool(), 1e-8)
    assert found.tolist() == pytest.approx([-1.161895, -0.387298, 0.387298, 1.161895], abs=1e-6)


@catches("a constant batch whitened by its rounding")
@pytest.mark.parametrize("x", [[0.1] * 7, [3.0], [1e4, 1e4, 1e4]])
def test_whitening_without_spread_gives_zero_and_no_nan(x):
    assert whitened(torch.tensor(x), torch.ones(len(x)).bool(), 1e-8).tolist() == [0.0] * len(x)


@catches("statistics of advantages over padding too")
def test_masked_statistics_ignore_whatever_lies_outside_the_mask():
    x = torch.tensor([1.0, torch.nan, 3, torch.inf])
    mask = torch.tensor([True, False, True, False])
    assert masked_mean(x, mask) == 2
    assert masked_variance(x, mask) == 2
    assert whitened(x, mask, 0.0).tolist() == pytest.approx([-0.707107, 0, 0.707107, 0], abs=1e-6)


SCORES = torch.tensor([[1.0, 2, 3, 4]])
ALL = torch.ones(1, 4).bool()


@catches("the spread of a group biased", "the leave-one-out mean holds the sample itself")
def test_group_baselines_give_the_worked_numbers_of_g5():
    assert leave_one_out(SCORES, ALL)[0].tolist() == pytest.approx([-2, -2 / 3, 2 / 3, 2])
    assert group_centred(SCORES, ALL)[0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    standardised = group_standardised(SCORES, ALL, 1e-8)[0].tolist()
    assert standardised == pytest.approx([-1.161895, -0.387298, 0.387298, 1.161895], abs=1e-6)


@catches("failed scores count in their group's mean")
def test_leave_one_out_subtracts_the_mean_of_the_others():
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 5, generator=g)
    valid = torch.rand(3, 5, generator=g) < 0.7
    found = leave_one_out(scores, valid)
    for p in range(3):
        for i in range(5):
            others = [scores[p, j] for j in range(5) if j != i and valid[p, j]]
            expected = scores[p, i] - sum(others) / len(others) if valid[p, i] and others else 0.0
            assert found[p, i].item() == pytest.approx(float(expected), abs=1e-6)


@catches("a group without spread divided by its rounding")
@pytest.mark.parametrize("score", [0.1, 1 / 3, -1e5, 0.0])
def test_a_group_without_spread_gives_exactly_zero(score):
    scores = torch.full((1, 7), score)
    valid = torch.ones(1, 7).bool()
    for found in (
        group_centred(scores, valid),
        leave_one_out(scores, valid),
        group_standardised(scores, valid, 1e-6),
        batch_standardised(scores, valid),
        length_weighted(scores, valid, torch.arange(7)[None]),
        relative_to_mean(scores, valid),
    ):
        assert found.tolist() == [[0.0] * 7]


@pytest.mark.parametrize("broken", [torch.inf, -torch.inf, torch.nan])
def test_a_broken_score_is_left_out_of_its_group(broken):
    scores = torch.tensor([[1.0, 2, broken, 3, 4]])
    valid = scores.isfinite()
    for f in (
        group_centred,
        leave_one_out,
        lambda s, v: group_standardised(s, v, 1e-6),
        batch_standardised,
        lambda s, v: length_weighted(s, v, torch.ones_like(s)),
        relative_to_mean,
    ):
        found = f(scores, valid)[0]
        assert found[2] == 0
        torch.testing.assert_close(found[[0, 1, 3, 4]], f(SCORES, ALL)[0])


def test_explained_variance_is_one_when_perfect_and_zero_for_a_constant():
    returns = torch.tensor([1.0, 2, 3, torch.nan])
    mask = torch.tensor([True, True, True, False])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full((4,), 5.0), returns, mask) == 0
    assert explained_variance(returns * 0 + 1, torch.ones(4), mask).isnan()


@catches("the mean over sequences forgets the rows' lengths")
def test_loss_weights_count_tokens_or_sequences_and_sum_to_one():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    token = loss_weights(mask, "token_mean", 1)
    assert token.tolist() == [[0.25, 0.25, 0.25, 0], [0.25, 0, 0, 0], [0, 0, 0, 0]]
    sequence = loss_weights(mask, "sequence_mean", 1)
    assert sequence[0, :3].tolist() == pytest.approx([1 / 6] * 3)
    assert sequence[1, 0] == 0.5
    assert sequence.sum() == pytest.approx(1)


def test_loss_weights_of_an_empty_minibatch_are_zero():
    for reduction in ("token_mean", "sequence_mean"):
        assert loss_weights(torch.zeros(2, 3).bool(), reduction, 3).sum() == 0


@catches("rounding of log-probs is whitened to unit variance")
def test_rounding_of_log_probs_in_small_rewards_is_no_spread():
    noise = 1e-8 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for constant in (0.0, 0.5):
        x, all_of_it = constant + noise, torch.ones(4, 8, dtype=torch.bool)
        assert not whitened(x, all_of_it, WHITEN_EPS).any()
        assert not group_standardised(x, all_of_it, 1e-6).any()
