"""What each algorithm makes of a conversation: discounts between turns, and turns compared."""

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
from lmpg.cli.main import settings_class
from lmpg.functional.advantages import next_in_mask
from lmpg.gym.settings import gym_settings_class
from tests.algorithms.test_algorithms import rollout_of
from tests.support.planted import catches

N = -1
TURNS = [[0, 0, N, N, N, 1, 1]]
WORKED = [0.413, 1.14, 0, 0, 0, 1.7, 4]  # tests/functional/test_turns.py
OF_TURNS = {"turn_gamma": 0.5, "turn_lam": 0.25}


def conversation(rewards, turns, states=None, values=None):
    """Rows of turns; the last step of each row is the end of its episode."""
    turns_BT = torch.tensor(turns)
    found = rollout_of(rewards, values, mask=(turns_BT >= 0).tolist())
    last_BT = found.mask_BT & (found.mask_BT.flip(1).cumsum(1).flip(1) == 1)
    return replace(
        found,
        turns_BT=turns_BT,
        states_BT=None if states is None else torch.tensor(states),
        terminated_BT=last_BT,
        ended_BT=last_BT,
        next_values_BT=next_in_mask(found.values_BT, found.mask_BT),
        greedy_scores_B=torch.zeros(len(turns)),
    )


PAID = conversation([[0.0, 1, 0, 0, 0, 0, 5]], TURNS, values=[[1.0] * 7])
FIELDS = {"kl_coef": 0, "gamma": 0.9, "lam": 0.5, "whiten": False}


@catches("the critic's targets without the discount between turns", "turn_lam left to the tokens")
@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_a_critics_advantages_take_both_time_scales(name):
    of_turns = {"turn_gamma": 0.8, "turn_lam": 0.25}
    credit = ALGORITHMS[name](**FIELDS, **of_turns).assign_credit(PAID)
    assert credit.advantages_BT[0].tolist() == pytest.approx(WORKED, abs=1e-6)
    torch.testing.assert_close(credit.returns_BT, credit.advantages_BT + PAID.values_BT)
    sampled = ALGORITHMS[name](**FIELDS, **of_turns, lam_critic=1.0).assign_credit(PAID)
    # λ = 1 between turns, too: 5; .9 · 5; 1 + .8 · 4.5; .9 · 4.6
    chosen = sampled.returns_BT[0][PAID.mask_BT[0]].tolist()
    assert chosen == pytest.approx([4.14, 4.6, 4.5, 5.0], abs=1e-6)


@catches("returns to go stop at the end of a turn", "γ between turns for each token of a turn")
def test_reinforce_returns_what_this_turn_and_discounted_later_ones_bring():
    """r = 1 and 5, γ' = .8: 1 + .8 · 5 = 5 on the first turn, 5 on the second."""
    plain = {"kl_coef": 0, "turn_gamma": 0.8, "baseline": "none"}
    expected = [[5.0, 5, 0, 0, 0, 5, 5]]
    assert REINFORCE(**plain).assign_credit(PAID).advantages_BT.tolist() == expected
    assert OffPolicy(**plain).assign_credit(PAID).advantages_BT.tolist() == expected
    weighed = REINFORCE(**plain, gamma=0.5, gamma_t=True).assign_credit(PAID).advantages_BT
    # G = 2.5, 5; 1 + .8 · 2.5, half of it; weights 1, .5, .5 · .8, .5 · .8 · .5
    assert weighed[0].tolist() == pytest.approx([1.5, 1.5, 0, 0, 0, 1, 1])


def test_reinforce_plus_plus_standardises_the_same_returns():
    rollout = conversation([[1.0, 0, 2], [4.0, 0, 8]], [[0, N, 1]] * 2)
    found = ReinforcePlusPlus(kl_coef=0, turn_gamma=0.5).assign_credit(rollout).advantages_BT
    returns = torch.tensor([2.0, 2, 8, 8])
    expected = (returns - returns.mean()) / returns.std()
    torch.testing.assert_close(found[rollout.mask_BT], expected)


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n != "distillation"])
def test_a_row_of_one_turn_has_the_credit_of_a_row_without_turns(name):
    kind = ALGORITHMS[name]
    fields = {k: v for k, v in OF_TURNS.items() if k in kind.model_fields}
    if "group_level" in kind.model_fields:
        fields = {}
    if kind.model_fields.get("group_size"):
        fields["group_size"] = 2
    rewards = [[0.5, 0, 0, 2], [0, 0, 1, 0], [0, 0, 0, -1], [0, 0, 0, 3]]
    turns = [[0, 0, 0, 0], [0, 0, 0, N], [N, 0, 0, 0], [0, N, 0, 0]]
    rollout = conversation(rewards, turns, values=[[0.5, 1, 1.5, 2]] * 4)
    today = {k: v for k, v in fields.items() if k not in OF_TURNS}
    new = kind(**fields).assign_credit(rollout)
    old = kind(**today).assign_credit(replace(rollout, turns_BT=None))
    assert torch.equal(new.advantages_BT, old.advantages_BT)
    assert new.returns_BT is None or torch.equal(new.returns_BT, old.returns_BT)


@catches("ω weighs the whole in place of the turn", "a turn's return without its discount")
@pytest.mark.parametrize("advantage", ["centred", "standardised", "leave_one_out"])
def test_gigpo_adds_how_a_turn_did_among_those_from_the_same_state(advantage):
    """Two rows, both from state 3: one is paid 4 in its second turn (from state 8), the other 2 at
    once. Wholes: 4 and 2. Turns from 3, with γ' = ½: 2 and 2, alike; that from 8 is alone."""
    rewards, states = [[0.0, 0, 0, 4], [0, 2, 0, 0]], [[3, 3, 0, 8], [3, 3, 0, 0]]
    rollout = conversation(rewards, [[0, 0, N, 1], [0, 0, N, N]], states)
    fields = {"group_size": 2, "advantage": advantage}
    whole = GRPO(**fields).assign_credit(rollout).advantages_BT
    level = {"group_level": "turn", "turn_coef": 0.5}
    alike = GRPO(**fields, **level, turn_gamma=0.5).assign_credit(rollout).advantages_BT
    torch.testing.assert_close(alike, whole)
    # with γ' = 1 they are 4 and 2, as the wholes are
    better = GRPO(**fields, **level, turn_gamma=1.0).assign_credit(rollout).advantages_BT
    factor = torch.tensor([[1.5, 1.5, 0, 1], [1.5, 1.5, 0, 0]])
    torch.testing.assert_close(better, factor * whole)


@catches("rows without a score count among a state's turns")
def test_states_are_compared_within_a_prompts_group_and_without_rows_that_have_no_score():
    rewards = [[0.0, 4], [0, 2], [0, 10], [0, 20]]
    rollout = conversation(rewards, [[0, 0]] * 4, [[3, 3]] * 4)
    fields = {"group_size": 2, "advantage": "centred", "group_level": "turn"}
    found = GRPO(**fields).assign_credit(rollout).advantages_BT[:, 0]
    assert found.tolist() == [2, -2, -10, 10]
    lost = replace(rollout, scorable_B=torch.tensor([True, True, False, True]))
    assert GRPO(**fields).assign_credit(lost).advantages_BT[:, 0].tolist() == [2, -2, 0, 0]


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (GRPO, {"turn_coef": 0.5}, "algorithm.turn_coef = 0.5 has no effect"),
        (GRPO, {"turn_gamma": 0.5}, "algorithm.turn_gamma = 0.5 has no effect"),
        (GRPO, {"group_level": "turn", "advantage": "relative"}, "algorithm.advantage = relative"),
        (PPO, {"turn_gamma": 0.0}, "greater than 0"),
    ],
)
def test_settings_of_turns_that_do_nothing_are_refused(kind, fields, said):
    with pytest.raises(pydantic.ValidationError, match=said):
        kind(**fields)


def test_an_agent_of_gym_is_told_that_its_steps_are_turns():
    with pytest.raises(pydantic.ValidationError, match=r"turn_lam = 0\.5, but every step"):
        gym_settings_class("ppo")(algorithm={"kl_coef": 0, "turn_lam": 0.5})


@pytest.mark.parametrize(
    ("name", "fields", "world", "said"),
    [
        ("ppo", {"turn_gamma": 0.5}, "addition", r"turn_gamma = 0\.5, but every response is one"),
        ("grpo", {"group_level": "turn"}, "addition", "group_level = turn, but every response"),
        ("reinforce_plus_plus", {"turn_gamma": 0.5, "baseline": "group_mean", "group_size": 2},
         "guess", "group_mean compares whole episodes"),
    ],
)  # fmt: skip
def test_a_language_model_without_turns_is_told_so(name, fields, world, said):
    environment = (
        {} if world == "addition" else {"path": "lmpg.language.worlds.tasks.guessing:Guess"}
    )
    given = {"data": {"world": world}, "environment": environment, "algorithm": fields}
    with pytest.raises(pydantic.ValidationError, match=said):
        settings_class(name)(**given)


def test_a_step_of_the_policy_without_a_turn_is_refused():
    with pytest.raises(ValueError, match="turns_BT"):
        replace(PAID, turns_BT=torch.full_like(PAID.turns_BT, N))
