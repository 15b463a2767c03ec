"""Credit between turns: two discounts in one recursion, returns of turns, turns of one state."""

import pytest
import torch

from lmpg.functional.advantages import gae, group_centred, group_standardised, leave_one_out
from lmpg.functional.turns import (
    before_another_turn,
    between_turns,
    relative_to_same_state,
    turn_returns,
)
from tests.support.planted import catches

N = -1  # a token of the environment, or padding
TURNS = torch.tensor([[0, 0, N, N, 1, N, 2, 2, 2, N]])
MASK = TURNS >= 0
REWARDS = torch.tensor([[0.0, 1, 0, 0, 2, 0, 0, 0, 4, 0]])


@catches("a turn's end before an observation is not seen", "the row's last step counts as one")
def test_the_steps_before_another_turn_are_the_last_ones_of_all_turns_but_the_last():
    found = before_another_turn(TURNS, MASK)[0].nonzero()[:, 0].tolist()
    assert found == [1, 4]


def test_what_stands_outside_the_mask_says_nothing_about_turns():
    other = torch.where(MASK, TURNS, torch.tensor([[9, 9, 0, 7, 9, 1, 9, 9, 9, 2]]))
    assert torch.equal(before_another_turn(other, MASK), before_another_turn(TURNS, MASK))
    assert torch.equal(*(turn_returns(REWARDS, x, MASK, 0.5) for x in (other, TURNS)))


@catches("turns are discounted by their tokens", "a turn's reward from its own step on alone")
def test_a_turn_returns_its_own_rewards_and_half_of_what_the_next_one_returns():
    """r = 1, 2, 4 and γ = ½: R₂ = 4, R₁ = 2 + 2 = 4, R₀ = 1 + 2 = 3."""
    found = turn_returns(REWARDS, TURNS, MASK, 0.5)[0].tolist()
    assert found == [3, 3, 0, 0, 4, 0, 4, 4, 4, 0]


@catches("the bridge over an observation costs a discount per token", "λ of tokens between turns")
def test_gae_takes_two_time_scales_with_these_worked_numbers():
    """Two turns of two steps, V = 1, γ = .9, λ = .5 within, γ' = .8, λ' = .25 between.

    δ = −.1, 1 + .8 − 1 = .8, −.1, 5 − 1 = 4; A₃ = 4, A₂ = −.1 + .45·4 = 1.7,
    A₁ = .8 + .8·.25·1.7 = 1.14, A₀ = −.1 + .45·1.14 = .413.
    """
    turns = torch.tensor([[0, 0, N, N, N, 1, 1]])
    mask, ended = turns >= 0, torch.tensor([[0, 0, 0, 0, 0, 0, 1]]).bool()
    rewards, ones = torch.tensor([[0.0, 1, 0, 0, 0, 0, 5]]), torch.ones(1, 7)
    decay = between_turns(0.9, 0.8, turns, mask), between_turns(0.5, 0.25, turns, mask)
    found = gae(rewards, ones, ones, ended, ended, mask, *decay)[0]
    assert found.tolist() == pytest.approx([0.413, 1.14, 0, 0, 0, 1.7, 4], abs=1e-6)


def random_rows(rows=12, turns=5, seed=0):
    """Rows of several turns with observations between them, some of them at the row's start."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 4, (rows, 2 * turns), generator=draw)
    count = torch.randint(1, turns + 1, (rows,), generator=draw)
    turns_BT = torch.full((rows, int(lengths.sum(1).max())), N)
    for b in range(rows):
        t = int(lengths[b, 0]) if b % 3 == 0 else 0
        for k in range(int(count[b])):
            own, between = lengths[b, 2 * k], lengths[b, 2 * k - 1]
            turns_BT[b, t : t + own] = k
            t += int(own + between)
    mask_BT = turns_BT >= 0
    rewards_BT, values_BT = (torch.randn(mask_BT.shape, generator=draw) for _ in range(2))
    return turns_BT, mask_BT, rewards_BT.masked_fill(~mask_BT, 0), values_BT


@catches("the two time scales exchanged")
@pytest.mark.parametrize("truncated", [False, True])
def test_gae_over_turns_is_a_loop_over_the_policys_steps(truncated):
    turns, mask, rewards, values = random_rows()
    gamma, lam, between, turn_lam = 0.9, 0.7, 0.6, 0.3
    ended, next_values = torch.zeros_like(mask), torch.full_like(values, 3.0)
    expected = torch.zeros_like(values)
    for b in range(len(turns)):
        steps = mask[b].nonzero()[:, 0].tolist()
        ended[b, steps[-1]] = True
        later = 0.0
        for t, after in reversed(list(zip(steps, [*steps[1:], None]))):
            new = after is not None and turns[b, after] != turns[b, t]
            g, decay = (between, turn_lam) if new else (gamma, lam)
            v = (0.0 if not truncated else 3.0) if after is None else float(values[b, after])
            if after is not None:
                next_values[b, t] = v
            delta = float(rewards[b, t]) + g * v - float(values[b, t])
            later = delta + (0.0 if after is None else g * decay * later)
            expected[b, t] = later
    terminated = torch.zeros_like(ended) if truncated else ended
    decay = between_turns(gamma, between, turns, mask), between_turns(lam, turn_lam, turns, mask)
    found = gae(rewards, values, next_values, terminated, ended, mask, *decay)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_between_turns_of_the_same_number_change_nothing():
    turns, mask, rewards, values = random_rows(seed=1)
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    parts = rewards, values, values, last, last, mask
    same = gae(*parts, between_turns(0.9, 0.9, turns, mask), between_turns(0.7, 0.7, turns, mask))
    torch.testing.assert_close(same, gae(*parts, 0.9, 0.7), atol=1e-6, rtol=1e-6)


def test_returns_of_turns_are_a_loop_over_turns():
    turns, mask, rewards, _ = random_rows(seed=2)
    expected = torch.zeros_like(rewards)
    for b in range(len(turns)):
        later = 0.0
        for k in reversed(range(int(turns[b].max()) + 1)):
            later = float(rewards[b][turns[b] == k].sum()) + 0.8 * later
            expected[b][turns[b] == k] = later
    torch.testing.assert_close(turn_returns(rewards, turns, mask, 0.8), expected)


@catches("turns of different prompts compared", "a state's turns counted by their tokens")
def test_turns_from_the_same_state_are_compared_with_these_worked_numbers():
    """Both rows start from state 7 with returns 4 and 5, then go on from 8 and from 9; the first
    comes back to 7 and gets 0 from there: 7 has the mean (4 + 5 + 0)/3 = 3, 8 and 9 are alone."""
    turns = torch.tensor([[0, 0, N, 1, 2], [0, N, 1, 1, N], [0, 0, N, N, N]])
    states = torch.tensor([[7, 7, 0, 8, 7], [7, 0, 9, 9, 0], [7, 7, 0, 0, 0]])
    returns = torch.tensor([[4.0, 4, 0, 2, 0], [5, 0, 4, 4, 0], [99, 99, 0, 0, 0]])
    counted = turns >= 0
    found = relative_to_same_state(returns, turns, states, counted, 2, group_centred)
    assert found.tolist() == [[1, 1, 0, 0, -3], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


@catches("turns compared by another turn's state")
@pytest.mark.parametrize("relative", ["centred", "standardised", "leave_one_out"])
def test_comparing_turns_is_a_loop_over_prompts_and_states(relative):
    turns, mask, returns, _ = random_rows(seed=3)
    size, eps = 4, 1e-6
    states = (turns * 7 + torch.arange(len(turns))[:, None] // 2 * 3) % 4 - 2
    scorable = torch.arange(len(turns)) != 5
    returns = turn_returns(returns, turns, mask, 0.9)
    kinds = {
        "centred": group_centred,
        "standardised": lambda x, valid: group_standardised(x, valid, eps),
        "leave_one_out": leave_one_out,
    }
    counted = mask & scorable[:, None]
    found = relative_to_same_state(returns, turns, states, counted, size, kinds[relative])
    members: dict[tuple, list] = {}
    for b in range(len(turns)):
        for k in range(int(turns[b].max()) + 1):
            t = int((turns[b] == k).nonzero()[0])
            if scorable[b]:
                members.setdefault((b // size, int(states[b, t])), []).append((b, k, t))
    expected = torch.zeros_like(returns)
    for those in members.values():
        x = torch.tensor([float(returns[b, t]) for b, _, t in those])
        for i, (b, k, _) in enumerate(those):
            others = torch.cat([x[:i], x[i + 1 :]])
            value = x[i] - x.mean()
            if relative == "standardised":
                value = value / (x.std() + eps) if len(x) > 1 else 0.0
            if relative == "leave_one_out":
                value = x[i] - others.mean() if len(others) else 0.0
            expected[b][turns[b] == k] = value
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
