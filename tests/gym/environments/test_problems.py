"""The problems with known answers: gymnasium's rules, seeds, and the answers themselves."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lmpg.gym.environments.make import find_spec, make_envs
from lmpg.gym.environments.problems import PROBLEMS
from lmpg.gym.environments.problems.aliased import short_corridor
from lmpg.gym.environments.problems.chains import three_state_chain
from lmpg.gym.environments.problems.finite import FiniteEnv, FiniteMDP
from lmpg.gym.environments.problems.gait import Gait, speed
from lmpg.gym.environments.problems.lqr import LQR, best_gain
from lmpg.gym.environments.problems.puck import Puck, braking
from lmpg.gym.environments.problems.rock_paper_scissors import RockPaperScissors, self_play
from lmpg.gym.environments.settings import EnvSettings
from tests.support.planted import catches

IDS = [f"lmpg/{name}-v0" for name in PROBLEMS]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("ignore:.*(infinity|symmetric and normalized).*:UserWarning")
def test_problems_pass_gymnasiums_checker(env_id):
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_problems_are_found_without_naming_a_module_and_are_seeded(env_id):
    assert find_spec(env_id).id == env_id

    def lived(seed):
        envs = make_envs(EnvSettings(id=env_id), 2)
        observations, _ = envs.reset(seed=seed)
        seen = [observations]
        envs.action_space.seed(0)
        for _ in range(30):
            observations, rewards, *_ = envs.step(envs.action_space.sample())
            seen += [observations, rewards]
        return np.concatenate([np.ravel(x).astype(float) for x in seen])

    assert np.array_equal(lived(1), lived(1))


@catches("an episode's end has the wrong share of the transitions")
def test_a_finite_environment_draws_what_its_arrays_say():
    mdp = FiniteMDP(
        np.array([[[0.2, 0.5]], [[0.0, 0.6]]]), np.array([[1.0], [2.0]]), np.array([0.3, 0.7]), 0.9
    )
    env = FiniteEnv(mdp)
    env.reset(seed=0)
    starts, ends = [], np.zeros((2, 3))
    for _ in range(20_000):
        state, _ = env.reset()
        starts.append(state)
        after, reward, terminated, truncated, _ = env.step(0)
        assert (reward, truncated) == (1.0 + state, False)
        ends[state, 2 if terminated else after] += 1
    assert np.mean(starts) == pytest.approx(0.7, abs=0.01)  # 3 standard errors
    shares = ends / ends.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, [[0.2, 0.5, 0.3], [0.0, 0.6, 0.4]], atol=0.02)


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="sum to at most 1"):
        FiniteMDP(np.full((1, 1, 1), 1.1), np.zeros((1, 1)), np.ones(1), 0.9)
    with pytest.raises(ValueError, match="expected"):
        FiniteMDP(np.ones((1, 1, 1)), np.zeros((2, 1)), np.ones(2) / 2, 0.9)


@catches("the corridor's middle is not reversed")
def test_the_corridor_is_reversed_in_the_middle_and_shows_one_observation():  # G16
    env = FiniteEnv(short_corridor())
    assert env.reset(seed=0) == (0, {})
    path = [env.step(action)[0:3:2] for action in (0, 1, 1, 1, 0, 1)]
    assert path == [(0, False)] * 5 + [(0, True)]


@catches("cells that should look alike do not")
def test_the_aliased_gridworld_traps_whoever_never_varies():  # G16
    env = gymnasium.make("lmpg/AliasedGridworld-v0")
    for grey in (0, 1):  # always left, always right, in both grey cells
        lengths = []
        for seed in range(30):
            seen, _ = env.reset(seed=seed)
            ended, length = False, 0
            while not ended:
                action = {0: 1, 1: grey, 2: 2, 3: 0}[seen]
                seen, _, terminated, truncated, _ = env.step(action)
                ended, length = terminated or truncated, length + 1
            lengths.append(length)
        assert max(lengths) == 1000  # never arrives from one side
        assert min(lengths) < 4


def test_time_limits_truncate():  # G3
    env = gymnasium.make("lmpg/CyclicChain-v0")
    env.reset(seed=0)
    steps = [env.step(0) for _ in range(8)]
    assert [step[0] for step in steps] == [1, 2, 3, 0, 1, 2, 3, 0]
    assert [step[3] for step in steps] == [False] * 7 + [True]
    assert not any(step[2] for step in steps)


def test_the_three_state_chain_pays_four_fifths_at_best():
    mdp = three_state_chain()
    P_SS = mdp.P_SAS[:, 1]
    stationary_S = np.linalg.matrix_power(P_SS, 100)[0]
    assert stationary_S @ mdp.r_SA[:, 1] == pytest.approx(0.8)


@catches("payoffs of rock, paper, scissors transposed")
def test_rock_paper_scissors_pays_what_g14_says():
    env = RockPaperScissors()
    np.testing.assert_allclose(env.mdp.r_SA, [[-0.1, 0.3, -0.2]], atol=1e-12)
    best = np.exp(env.mdp.r_SA[0] / 0.1)
    np.testing.assert_allclose(best / best.sum(), [0.017868, 0.975559, 0.006573], atol=5e-7)
    env.reset(seed=0)
    paid = np.mean([[env.step(a)[1] for a in range(3)] for _ in range(20_000)], axis=0)
    np.testing.assert_allclose(paid, env.mdp.r_SA[0], atol=3 * 0.9 / 20_000**0.5)


@catches("in self-play each learns against itself")
def test_self_play_circles_but_its_average_goes_to_a_third_each():  # G14
    start = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    played = self_play(start, step_size=0.02, num_steps=50_000)
    np.testing.assert_allclose(played.mean(0), 1 / 3, atol=0.005)
    assert abs(played[-10_000:] - 1 / 3).max() > 0.2  # it never settles
    np.testing.assert_allclose(played[0], start)
    lead = start[0] * np.exp(0.02 * np.array([0.4, -0.4, 0.0]))  # against (.2, .2, .6)
    np.testing.assert_allclose(played[1, 0], lead / lead.sum())


@catches("LQR pays for the state after the action", "LQR's best gain without γ")
def test_the_best_gains_are_those_of_g17_and_no_other_gain_pays_more():
    assert best_gain(1.0) == pytest.approx(0.618034, abs=1e-6)
    assert best_gain(0.9) == pytest.approx(0.588403, abs=1e-6)

    def discounted(gain):
        env = LQR()
        (x,), _ = env.reset(seed=0)
        first, total = x, 0.0
        for t in range(50):
            (x,), reward, *_ = env.step(np.array([-gain * x]))
            total += 0.9**t * reward
        return total / first**2

    K = best_gain(0.9)
    assert discounted(K) == pytest.approx(-1.588403, abs=1e-5)
    assert discounted(K) > max(discounted(K - 0.05), discounted(K + 0.05))


def test_a_linear_critic_can_see_the_square_of_lqr():
    env = gymnasium.make("lmpg/LQR-v0", square=True)
    (x, square), _ = env.reset(seed=0)
    assert square == x**2


def test_the_puck_is_pushed_by_small_forces_and_braking_pays():
    def played(control):
        env = gymnasium.make("lmpg/Puck-v0")
        totals = []
        for seed in range(20):
            seen, _ = env.reset(seed=seed)
            total, truncated = 0.0, False
            while not truncated:
                seen, reward, _, truncated, _ = env.step(control(seen))
                total += reward
            totals.append(total)
        return np.mean(totals)

    nothing = played(lambda seen: np.zeros(2, np.float32))
    rushing = played(lambda seen: braking(seen[None], damping=0.0)[0])
    assert played(lambda seen: braking(seen[None])[0]) == pytest.approx(-68, abs=17)
    assert nothing == pytest.approx(-203, abs=36)  # 3 standard errors of 20 episodes
    assert rushing < -90


def test_the_pucks_target_moves_every_fifty_steps_and_walls_stop_it():
    env = Puck()
    env.reset(seed=0)
    targets = []
    for _ in range(100):
        targets.append(env.target.copy())
        env.step(np.array([1.0, 0.0], np.float32))
    changes = [i for i in range(1, 100) if (targets[i] != targets[i - 1]).any()]
    assert changes == [50]
    assert (env.position[0], env.velocity[0]) == (1, 0)


def test_differences_of_speed_make_the_gait_faster():
    x = np.zeros(12)
    assert speed(x) == pytest.approx(0.107057, abs=1e-6)
    for _ in range(40):
        slopes = np.array([speed(x + 0.05 * e) - speed(x - 0.05 * e) for e in np.eye(12)])
        x = np.clip(x + 0.1 * slopes / np.linalg.norm(slopes), -1, 1)
    assert speed(x) > 0.44
    assert speed(np.ones(12)) < 0.1  # not every large number is fast


def test_a_measured_speed_has_the_noise_that_was_asked_for():
    env = Gait(noise=0.02)
    env.reset(seed=0)
    measured = [env.step(np.zeros(12, np.float32))[1] for _ in range(4000)]
    assert np.std(measured) == pytest.approx(0.02, rel=0.05)
    assert np.mean(measured) == pytest.approx(speed(np.zeros(12)), abs=0.001)
