"""Methods that learn as they live: their traces, targets and factors, number by number."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest
import torch

from lmpg.gym.classic.average_reward import AverageReward
from lmpg.gym.classic.finite_differences import FiniteDifferences
from lmpg.gym.classic.incremental import transitions
from lmpg.gym.classic.lstd_actor_critic import LstdActorCritic
from lmpg.gym.classic.qac import QAC
from lmpg.gym.classic.td_actor_critic import TdActorCritic
from lmpg.gym.classic.td_lambda import TdLambda
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.runner import Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.parameters import actor_parameters, flat
from lmpg.runtime.seeding import generator
from lmpg.settings.section import UserError
from tests.support.corridor import Chain, Scripted, TwoRooms, living, tabular
from tests.support.planted import catches

STILL = {"gamma": 0.9, "actor_step_size": 0.0, "critic_step_size": 1.0}
DISTINCT = {"states": [0, 1, 2, 3], "rewards": [1.0, 2.0, 3.0], "num_states": 4, "terminal": True}
BACK = {"states": [0, 1, 0, 0], "rewards": [1.0, 2.0, 3.0], "num_states": 2, "terminal": True}
V = [0.5, 1.0, 1.5, 2.0]


def lived(method, script, steps=(3,), V=V):
    """The policy after living through `script`, an iteration for each of `steps`."""
    with living(Scripted, **script) as runner:
        policy = tabular(runner)
        start = torch.tensor(V[: script["num_states"]])
        policy.critic.weight.data = start[None].clone()
        state = method.initial_state(policy, 0)
        for i, until in enumerate(steps):
            method.iterate(policy, runner, state, until, generator("act", i))
            assert runner.num_steps == until
    return policy, policy.critic.weight.detach()[0] - start


@catches("the trace of TD(λ) without γ", "changes of offline TD(λ) made at once")
def test_offline_td_lambda_makes_the_increments_of_g6():
    method = TdLambda(**STILL, critic_lam=0.8, offline=True)
    _, change = lived(method, DISTINCT)
    assert change.tolist() == pytest.approx([3.8696, 3.43, 1.5, 0], abs=1e-5)
    _, change = lived(method, BACK)
    assert change.tolist() == pytest.approx([6.24, 3.25], abs=1e-5)


@catches("replacing trace that accumulates")
def test_replacing_traces_make_the_increments_of_g6():
    _, change = lived(TdLambda(**STILL, critic_lam=0.8, offline=True, trace="replacing"), BACK)
    assert change.tolist() == pytest.approx([4.944, 3.25], abs=1e-5)


def test_online_td_lambda_makes_the_values_of_g6():
    method = TdLambda(**STILL | {"critic_step_size": 0.1}, critic_lam=0.8)
    _, change = lived(method, DISTINCT)
    assert (torch.tensor(V) + change)[:3].tolist() == pytest.approx(
        [0.88696, 1.343, 1.65], abs=1e-5
    )


@catches("trace leaks into the next episode, or ends with the iteration")
def test_traces_go_on_over_the_end_of_an_iteration_and_end_with_the_episode():
    method = TdLambda(**STILL | {"critic_step_size": 1e-4}, critic_lam=0.8, offline=True)
    _, change = lived(method, DISTINCT, steps=(2, 3))
    assert (change * 1e4).tolist() == pytest.approx([3.8696, 3.43, 1.5, 0], abs=0.01)
    _, twice = lived(method, DISTINCT, steps=(2, 6))
    assert (twice * 1e4).tolist() == pytest.approx([7.7392, 6.86, 3.0, 0], abs=0.01)


@catches(
    "s′ of a truncated episode is the next one's start",
    "a step that only resets is learned from",
)
@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_every_transition_starts_where_life_went_on_and_ends_at_its_true_last_state(vectorization):
    settings = EnvSettings(id="CartPole-v1", num_envs=1, vectorization=vectorization)
    runner = Runner(make_envs(settings, 1), settings.id, 0)
    lived = list(transitions(tabular(runner), runner, 101, generator("act")))
    runner.close()
    assert len(lived) == runner.num_steps == 101
    for t, after in itertools.pairwise(lived):
        assert torch.equal(t.s_then, after.s)
        assert torch.equal(t.s_next, t.s_then) != t.ended
        assert (t.s_next[[0, 2]].abs() > torch.tensor([2.4, 0.2094])).any() == t.terminated
    assert sum(t.r for t in lived) == 101
    assert sum(t.ended for t in lived) > 2


@catches("TD target bootstraps after termination, or not after truncation")
@pytest.mark.parametrize("lam", [0.0, 0.8])
def test_truncation_bootstraps_and_termination_does_not_in_td_lambda(lam):  # G1
    method = TdLambda(**STILL, critic_lam=lam, offline=True)
    _, change = lived(method, DISTINCT | {"terminal": False})
    expected = {0.0: [1.4, 2.35, 3.3, 0], 0.8: [4.80272, 4.726, 3.3, 0]}[lam]
    assert change.tolist() == pytest.approx(expected, abs=1e-5)


@catches("the one-step target bootstraps after termination, or not after truncation")
@pytest.mark.parametrize(("terminal", "last"), [(True, 1.5), (False, 3.3)])
def test_truncation_bootstraps_and_termination_does_not_in_one_step(terminal, last):
    method = TdActorCritic(**STILL | {"critic_step_size": 1e-4})
    _, change = lived(method, DISTINCT | {"terminal": terminal})
    assert (change * 1e4).tolist() == pytest.approx([1.4, 2.35, last, 0], abs=0.01)


@catches("actor's trace with the critic's decay")
def test_the_actors_trace_is_made_of_its_scores_so_that_each_step_gets_its_advantage():
    method = TdLambda(**STILL | {"actor_step_size": 1.0}, actor_lam=0.8, critic_lam=0, offline=True)
    policy, _ = lived(method, DISTINCT)
    weight = policy.actor.weight.detach()  # of action and state; the score is ±½ in its state
    assert (2 * weight).abs()[0].tolist() == pytest.approx([3.8696, 3.43, 1.5, 0], abs=1e-5)
    torch.testing.assert_close(weight[0], -weight[1])


@catches("γ^t where it was not asked for, or not 1 at the start of an episode")
@pytest.mark.parametrize("kind", [TdActorCritic, TdLambda])
@pytest.mark.parametrize("discounted", [False, True])
def test_the_factor_of_gamma_to_the_t_is_there_when_it_is_asked_for(kind, discounted):  # G13
    """Its mean over episodes is Σ γ^t .5^t · .0454545 = .0826446, without the factor .0909091."""
    lam = {"actor_lam": 0.0, "critic_lam": 0.0} if kind is TdLambda else {}
    method = kind(
        gamma=0.9, actor_step_size=1e-5, critic_step_size=0, discount_states=discounted, **lam
    )
    with living(Chain) as runner:
        policy = tabular(runner)
        policy.critic.weight.data.fill_(0.909091)
        state = method.initial_state(policy, 0)
        while len(runner.episodes) < 50:
            method.iterate(policy, runner, state, runner.num_steps + 1, generator(runner.num_steps))
        lengths = np.array([length for _, length in runner.episodes])
    factors = (1 - 0.9**lengths) / 0.1 if discounted else lengths
    found = float(policy.actor.weight[1, 0].detach()) / 1e-5
    assert found == pytest.approx(0.0454545 * factors.sum(), rel=1e-3)


@catches("Q actor-critic learns the largest next value, or bootstraps after termination")
def test_sarsa_learns_the_action_values_of_g13():
    """Within 3 standard errors: the target's spread .08 times √(2α / 2) for both features."""
    method = QAC(gamma=0.9, actor_step_size=0, critic_step_size=0.01)
    with living(Chain) as runner:
        policy = tabular(runner, critic=False)
        state = method.initial_state(policy, 0)
        method.iterate(policy, runner, state, 1001, generator("act"))
        assert runner.num_steps == 1001
    assert state["w"].sum(1).tolist() == pytest.approx([0.818182, 1.0], abs=0.025)


def test_sarsa_bootstraps_after_truncation_only():
    w = []
    for terminal in (True, False):
        method = QAC(gamma=0.9, actor_step_size=0, critic_step_size=1e-4)
        with living(Scripted, **DISTINCT | {"terminal": terminal}) as runner:
            policy = tabular(runner, critic=False)
            state = method.initial_state(policy, 0)
            state["w"] = torch.tensor([[*V, 0.0], [*V, 0.0]])
            method.iterate(policy, runner, state, 3, generator("act"))
        w.append(1e4 * (state["w"][:, :4].sum(0) - 2 * torch.tensor(V)))
    assert w[0].tolist() == pytest.approx([1.4, 2.35, 1.5, 0], abs=0.02)
    assert w[1].tolist() == pytest.approx([1.4, 2.35, 3.3, 0], abs=0.02)


def test_a_continuous_action_has_no_q_actor_critic():
    settings = EnvSettings(id="Pendulum-v1", num_envs=1)
    runner = Runner(make_envs(settings, 1), settings.id, 0)
    with pytest.raises(UserError, match="continuous"):
        QAC().initial_state(tabular(runner), 0)
    runner.close()


@catches("least-squares critic bootstraps after termination")
@pytest.mark.parametrize("lam", [0.0, 0.9])
def test_least_squares_td_solves_for_the_values_of_its_sample(lam):
    """TD(0) on 50 lives through the script of G1: V(s) is the discounted sum of what follows."""
    method = LstdActorCritic(gamma=0.9, lam=lam, step_size=0, ridge=1e-9)
    with living(Scripted, **DISTINCT) as runner:
        policy = tabular(runner, critic=False)
        state = method.initial_state(policy, 0)
        method.iterate(policy, runner, state, 150, generator("act"))
    values = (state["w"][:4] + state["w"][4])[:3]
    assert values.tolist() == pytest.approx([5.23, 4.7, 3.0], abs=1e-3)


@catches("trace of the least-squares critic leaks")
def test_least_squares_td_at_lambda_1_is_the_mean_return_of_states_that_look_alike():
    """Returns 1 + .9·2 and 2 of each episode; its trace ends with it."""
    method = LstdActorCritic(gamma=0.9, lam=1, step_size=0, ridge=1e-9)
    with living(Scripted, states=[0, 0], rewards=[1.0, 2.0], num_states=1, terminal=True) as runner:
        policy = tabular(runner, critic=False)
        state = method.initial_state(policy, 0)
        method.iterate(policy, runner, state, 10, generator("act"))
    assert float(state["w"].sum()) == pytest.approx(2.4, abs=1e-4)


def test_least_squares_td_bootstraps_after_truncation():
    method = LstdActorCritic(gamma=0.5, step_size=0, ridge=1e-9)
    with living(Scripted, states=[0, 0], rewards=[1.0], num_states=1, terminal=False) as runner:
        policy = tabular(runner, critic=False)
        state = method.initial_state(policy, 0)
        method.iterate(policy, runner, state, 20, generator("act"))
    assert float(state["w"].sum()) == pytest.approx(2.0, abs=1e-3)  # 1/(1 − γ), not 1


@catches("average reward: no R̄ in the TD error")
def test_the_average_reward_and_the_differential_values_of_two_rooms():
    """At random 1 step in 4 is paid, and h(1) − h(0) = ½, as h(0) = −r̄ + ½(h(0) + h(1))."""
    still = {"actor_step_size": 0, "critic_lam": 0.5}
    quick = AverageReward(**still, critic_step_size=0.05, average_step_size=0.02)
    slow = AverageReward(**still, critic_step_size=0.01, average_step_size=0.002)
    with living(TwoRooms) as runner:
        policy = tabular(runner)
        state = quick.initial_state(policy, 0)
        quick.iterate(policy, runner, state, 400, generator(0))
        found = slow.iterate(policy, runner, state, 1600, generator(1))
    h = policy.critic.weight.detach()[0]
    assert found["value/average_reward"] == pytest.approx(0.25, abs=0.05)
    assert float(h[1] - h[0]) == pytest.approx(0.5, abs=0.15)


def test_the_average_reward_actor_learns_to_go_where_it_is_paid_and_to_stay():
    method = AverageReward(
        actor_step_size=0.2, critic_step_size=0.1, average_step_size=0.02, actor_lam=0.5
    )
    with living(TwoRooms) as runner:
        policy = tabular(runner)
        state = method.initial_state(policy, 0)
        found = method.iterate(policy, runner, state, 1000, generator("act"))
    assert found["value/average_reward"] > 0.8


@catches("average reward: a reset is the end of the world")
def test_a_life_that_goes_on_takes_the_reset_for_a_step():
    """Episodes of one paid step in state 0, then back to 0: R̄ is 1 and v̂ learns nothing else."""
    method = AverageReward(actor_step_size=0, critic_step_size=0.1, average_step_size=0.1)
    with living(Scripted, states=[0, 1], rewards=[1.0], num_states=2, terminal=True) as runner:
        policy = tabular(runner)
        policy.critic.weight.data = torch.tensor([[0.0, 100.0]])
        state = method.initial_state(policy, 0)
        found = method.iterate(policy, runner, state, 200, generator("act"))
    assert found["value/average_reward"] == pytest.approx(1, abs=1e-3)
    assert policy.critic.weight[0, 1].item() == 100


class Target(gymnasium.Env):
    """One step, paid −|a − (1, 2)|²."""

    observation_space = gymnasium.spaces.Box(1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        paid = -float(np.square(action - np.array([1, 2])).sum())
        return np.ones(1, np.float32), paid, True, False, {}


@catches(
    "finite differences twice too large",
    "finite differences leave their disturbance in the weights",
)
def test_finite_differences_find_the_exact_gradient_of_a_quadratic():
    method = FiniteDifferences(step_size=0.1, disturbances=3, size=0.3)
    with living(Target) as runner:
        policy = tabular(runner, critic=False, aliased=True)  # θ: the mean action and log σ
        state = method.initial_state(policy, 0)
        assert method.iterate(policy, runner, state, 5, generator("act")) == {}
        assert policy.actor.bias.tolist() == [0, 0]  # what is saved is not disturbed
        policy.distribution.log_std.requires_grad_(False)
        state = method.initial_state(policy, 0)
        found = method.iterate(policy, runner, state, 11, generator("act"))
    assert found["grad_norm"] == pytest.approx(20**0.5, abs=1e-4)
    assert policy.actor.bias.tolist() == pytest.approx([0.2, 0.4], abs=1e-5)


def test_finite_differences_climb_with_returns_of_several_episodes():
    method = FiniteDifferences(step_size=0.2, disturbances=2, episodes=2, normalise=True)
    with living(Target) as runner:
        policy = tabular(runner, critic=False, aliased=True)
        policy.distribution.log_std.requires_grad_(False)
        state = method.initial_state(policy, 0)
        method.iterate(policy, runner, state, 8 * 20, generator("act"))
    assert flat(actor_parameters(policy)).tolist() == pytest.approx([1, 2], abs=0.3)
