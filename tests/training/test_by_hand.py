"""What small networks do by hand, for speed, is what torch and gymnasium do."""

from __future__ import annotations

import copy
import ctypes
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from lmpg.algorithms.ppo import PPO
from lmpg.functional.losses import clipped_surrogate
from lmpg.gym.environments.copies import Copies
from lmpg.gym.networks.flat_mlp import FlatMLP
from lmpg.gym.networks.mlp_policy import ActionSpec, MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runtime.machine import limit_threads
from lmpg.runtime.processes import SingleProcess
from lmpg.runtime.seeding import generator
from lmpg.training import diagnostics
from lmpg.training.diagnostics import Diagnostics
from lmpg.training.optimizer import policy_optimizer, take_step
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater, _gradients
from lmpg.types import Evaluation, Minibatch
from tests.support.bandit import BanditPolicy, bandit_rollout, updater_for
from tests.support.planted import catches

ACTIONS = {
    "discrete": ActionSpec("discrete", 3),
    "continuous": ActionSpec("continuous", 2),
    "joint": ActionSpec("multi-discrete", 2, (3, 2)),
}


def policy_of(kind: str, critic: bool = True, **settings) -> MLPPolicy:
    policy = MLPPolicy(4, ACTIONS[kind], PolicySettings(hidden_sizes=(8, 6), **settings), critic)
    policy.initialise(generator("policy"))
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator("noise", p.numel()))
    return policy


def inputs_of(kind: str, rows: int = 7) -> dict[str, torch.Tensor]:
    drawn = generator("rows", rows)
    actions = {
        "discrete": torch.randint(3, (rows, 2), generator=drawn),
        "continuous": torch.randn(rows, 2, 2, generator=drawn),
        "joint": torch.randint(2, (rows, 2, 2), generator=drawn),
    }
    return {"observations": torch.randn(rows, 2, 4, generator=drawn), "actions": actions[kind]}


def by_autograd(policy: MLPPolicy, inputs, weights) -> list[torch.Tensor | None]:
    """Gradients of Σ weights · (log-probs, entropy, values), torch's own ones."""
    policy.actor.twice = True  # nothing by hand
    if policy.critic is not None:
        policy.critic.twice = True
    return gradients(policy, policy.evaluate(inputs), weights)


def gradients(policy: MLPPolicy, new, weights) -> list[torch.Tensor | None]:
    seen = [new.logprobs_BT, new.entropy_BT, new.values_BT]
    terms = [(w * x).sum() for w, x in zip(weights, seen) if w is not None and x is not None]
    return list(torch.autograd.grad(sum(terms), list(policy.parameters()), allow_unused=True))


def weights_of(which: str) -> list[torch.Tensor | None]:
    drawn = torch.randn(3, 7, 2, generator=generator("weights"))
    return [w if name in which else None for name, w in zip("lev", drawn)]


@catches(
    "∇ log π of a softmax without 1_a, ∇H without H",
    "the gradient of a Gaussian's log σ without its − 1",
    "the critic's gradient does not reach the trunk it shares, by hand",
)
@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("which", ["lev", "l", "e", "v", "lv"])
@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_views_and_gradients_by_hand_are_those_of_autograd(kind, which, trunk, activation):
    settings = {"trunk": trunk, "activation": activation}
    policy, oracle = policy_of(kind, **settings), policy_of(kind, **settings)
    inputs, weights = inputs_of(kind), weights_of(which)
    expected = by_autograd(oracle, inputs, weights)
    new, old = policy.evaluate(inputs), oracle.evaluate(inputs)
    for name in ("logprobs_BT", "entropy_BT", "values_BT"):
        torch.testing.assert_close(getattr(new, name), getattr(old, name), atol=1e-6, rtol=1e-5)
    leaf, backward = policy.differentiated(inputs)
    assert torch.equal(leaf.logprobs_BT, new.logprobs_BT)  # ratio 1 at the first step
    backward(*weights)
    for found, p, wanted in zip(gradients(policy, new, weights), policy.parameters(), expected):
        zero = torch.zeros_like(p)
        for x in (found, p.grad):
            torch.testing.assert_close(
                zero if x is None else x, zero if wanted is None else wanted, atol=2e-5, rtol=1e-4
            )


@catches("a micro-batch's gradient overwrites that of the one before")
def test_gradients_of_micro_batches_add_up():
    policy = policy_of("discrete")
    inputs, weights = inputs_of("discrete"), weights_of("lv")
    policy.differentiated(inputs)[1](*weights)
    once = [p.grad.clone() for p in policy.parameters()]
    policy.differentiated(inputs)[1](*weights)
    for p, gradient in zip(policy.parameters(), once):
        torch.testing.assert_close(p.grad, 2 * gradient)


def test_a_fixed_deviation_gets_no_gradient_and_without_a_critic_there_are_no_values():
    policy = policy_of("continuous", critic=False, log_std="fixed")
    new, backward = policy.differentiated(inputs_of("continuous"))
    assert new.values_BT is None
    backward(*weights_of("le"))
    assert policy.distribution.log_std.grad is None
    assert policy.actor.flat.grad.any()


def test_what_has_no_closed_form_is_left_to_autograd():
    policy = policy_of("continuous", squash=True)
    assert policy.differentiated(inputs_of("continuous")) is None
    assert policy_of("continuous").differentiated(inputs_of("continuous")) is not None


@catches(
    "AdamW of small networks does not count its steps",
    "gradients of small networks are not clipped",
)
@pytest.mark.parametrize("max_grad_norm", [1e-3, 100.0])
def test_quick_steps_are_those_of_torch(max_grad_norm):
    settings = UpdateSettings(
        learning_rate=0.01, critic_learning_rate=0.03, weight_decay=0.1, max_grad_norm=max_grad_norm
    )
    mine, theirs = policy_of("continuous"), policy_of("continuous")
    optimizers = [policy_optimizer(policy, settings) for policy in (mine, theirs)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] *= group["scale"]
    for step in range(4):
        drawn = [
            torch.randn(p.shape, generator=generator(step, p.numel())) for p in mine.parameters()
        ]
        for policy in (mine, theirs):
            for p, gradient in zip(policy.parameters(), drawn):
                p.grad = gradient.clone()
        norm = take_step(optimizers[0], settings, SingleProcess())
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm)
        optimizers[1].step()
        assert norm == pytest.approx(float(expected), rel=1e-6)
    for p, q in zip(mine.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-6)
        assert p.grad is None
        assert optimizers[0].state[p]["step"] == optimizers[1].state[q]["step"] == 4


@catches("a step with A < 0 is not cut below 1 − ε")
def test_one_cut_of_log_ratios_is_the_minimum_of_the_paper():
    drawn = generator("ratios")
    x = torch.randn(500, generator=drawn, dtype=torch.float64).requires_grad_()
    advantages = torch.randn(500, generator=drawn, dtype=torch.float64)
    ratios = x.exp()
    plain = -torch.minimum(ratios * advantages, ratios.clamp(0.9, 1.3) * advantages)
    found = clipped_surrogate(x, advantages, 0.1, 0.3)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-7)
    weights = torch.randn(500, generator=drawn, dtype=torch.float64)
    slopes = [torch.autograd.grad(terms, x, weights)[0] for terms in (found, plain)]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-7)
    assert (slopes[0] == 0).any()


@catches("metrics of steps that were summed earlier are lost")
@pytest.mark.parametrize("epochs", [1, 3])
def test_metrics_do_not_depend_on_how_many_steps_are_summed_at_once(epochs, monkeypatch):
    found = []
    for pending in (1, 40, 1 << 16):
        monkeypatch.setattr(diagnostics, "PENDING", pending)
        policy = BanditPolicy()
        rollout = bandit_rollout(policy, 64, 0, 1)
        updater = updater_for(policy, microbatch_size=5, epochs=epochs, learning_rate=0.05)
        found.append(updater.update(PPO(), rollout, PPO().assign_credit(rollout), 1))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == pytest.approx(found[2], rel=1e-5)


@catches("minibatches in the order of the rollout")
def test_minibatches_are_shuffled_and_complete_unless_there_is_one():
    policy = policy_of("discrete")
    numbers = torch.arange(20.0)[:, None]
    whole = updater_batch(numbers)
    updater = Updater(
        policy, UpdateSettings(rollout_size=20, minibatch_size=5), 1, 0, SingleProcess()
    )
    updater.settings = updater.settings.model_copy(update={"epochs": 2})
    seen = [batch.advantages_BT.squeeze(1).tolist() for batch in updater._minibatches(whole, 1)]
    assert [len(batch) for batch in seen] == [5] * 8
    for epoch in (seen[:4], seen[4:]):
        rows = [row for batch in epoch for row in batch]
        assert sorted(rows) == list(range(20)) != rows
    assert seen[:4] != seen[4:]


def updater_batch(numbers: torch.Tensor) -> Minibatch:
    inputs = {"observations": numbers, "actions": numbers.long()}
    return Minibatch(inputs, numbers > -1, numbers, numbers)


@catches("final_obs is the next episode's first observation")
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_copies_step_as_gymnasiums_own_in_same_step_mode(env_id):
    make = partial(gymnasium.make, env_id, max_episode_steps=20)
    kinds = [
        kind([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP) for kind in (Copies, SyncVectorEnv)
    ]
    for envs in kinds:
        envs.action_space.seed(0)
    starts = [envs.reset(seed=3)[0] for envs in kinds]
    np.testing.assert_array_equal(*starts)
    kinds[1].action_space.seed(1)
    for _ in range(60):
        actions = kinds[1].action_space.sample()
        (*mine, my_info), (*theirs, info) = (envs.step(actions) for envs in kinds)
        for x, y in zip(mine, theirs):
            np.testing.assert_array_equal(x, y)
        assert ("final_obs" in my_info) == ("final_obs" in info)
        for i in np.flatnonzero(mine[2] | mine[3]):
            np.testing.assert_array_equal(my_info["final_obs"][i], info["final_obs"][i])


@catches("numpy goes on with all cores where torch has one thread")
def test_numpys_threads_are_limited_with_torchs():
    found = list(Path(np.__file__).parent.with_name("numpy.libs").glob("*openblas*"))
    if not found:
        pytest.skip("this numpy brings no OpenBLAS")
    library, before = ctypes.CDLL(str(found[0])), torch.get_num_threads()
    try:
        for count in (2, 1):
            limit_threads(count)
            assert library.scipy_openblas_get_num_threads64_() == torch.get_num_threads() == count
    finally:
        limit_threads(before)


def test_a_copy_of_a_network_reads_its_own_weights():
    network = FlatMLP((3, 4, 1), "tanh")
    network.initialise(1.0, torch.Generator().manual_seed(0))
    x = np.ones((2, 3), dtype=np.float32)
    network.outputs(x)
    other = copy.deepcopy(network)
    other.flat.data = network.flat.data
    with torch.no_grad():
        network.flat.add_(1)
    assert np.array_equal(other.outputs(x), network.outputs(x))


def test_a_term_that_depends_on_nothing_has_no_gradient_and_leaves_the_others_theirs():
    values = torch.tensor([[1.0], [2.0]], requires_grad=True)
    other = torch.zeros(2, 1, requires_grad=True)
    leaves = [other, torch.zeros(2, 1, requires_grad=True), values]
    terms = {"policy": torch.zeros(2, 1), "value": values**2}
    found = _gradients(terms, torch.full((2, 1), 0.5), leaves)
    assert found["policy"] == [None, None, None]
    assert found["value"][2].tolist() == [[1.0], [2.0]]


def test_a_minibatch_without_rows_on_this_rank_has_no_kl():
    seen = Diagnostics(SingleProcess())
    one = torch.ones(2, 1)
    new = Evaluation(one.clone(), one, None)
    batch = Minibatch(
        inputs={},
        mask_BT=torch.ones(2, 1, dtype=torch.bool),
        old_logprobs_BT=torch.zeros(2, 1),
        advantages_BT=one,
    )
    seen.begin_minibatch()
    seen.add(new, batch, {}, one, {"policy": [one, None]})
    assert seen.newest()[0] > 0
    seen.begin_minibatch()
    assert seen.newest() == (0.0, 0.0)
