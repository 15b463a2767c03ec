"""The update: invariance to how it is cut up, G19's first step, and when it ends."""

import math
from dataclasses import replace

import pytest
import torch

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.cli.main import settings_of
from lmpg.language.run_generator import old_logprobs_of
from lmpg.training.diagnostics import Diagnostics
from lmpg.training.old_logprobs import OldLogprobs
from lmpg.training.optimizer import learning_rate
from lmpg.training.settings import UpdateSettings
from lmpg.types import Minibatch
from tests.support.bandit import REFERENCE, REWARDS, BanditPolicy, bandit_rollout, updater_for
from tests.support.planted import catches


@catches("optimizer steps on every micro-batch")
@pytest.mark.parametrize("algorithm", [PPO(), REINFORCE(baseline="value"), GRPO(kl_coef=0.1)])
def test_first_minibatch_has_ratio_one_and_neither_kl_nor_clipping(algorithm):
    policy = BanditPolicy()
    rollout = bandit_rollout(policy, 64, 0, 1)
    updater = updater_for(policy, rollout_size=64, minibatch_size=64, epochs=1)
    found = updater.update(algorithm, rollout, algorithm.assign_credit(rollout), 1)
    assert found["policy/ratio_mean"] == pytest.approx(1, abs=1e-7)
    assert found["policy/ratio_max"] == pytest.approx(1, abs=1e-7)
    assert found["policy/approx_kl"] == pytest.approx(0, abs=1e-7)
    assert found["policy/clip_fraction"] == 0
    uniform = BanditPolicy()
    uniform.theta.data.zero_()
    found = updater_for(uniform, rollout_size=64, minibatch_size=64, epochs=1).update(
        algorithm, rollout, algorithm.assign_credit(rollout), 1
    )
    assert found["policy/entropy"] == pytest.approx(math.log(3), rel=1e-6)


def test_clip_fraction_counts_the_steps_without_gradient():
    policy = BanditPolicy()
    rollout = bandit_rollout(policy, 300, 0, 1)
    algorithm = PPO(kl_coef=0.0, clip=0.2)
    credit = algorithm.assign_credit(rollout)
    policy.theta.data += torch.tensor([-1.0, 0.0, 1.0])
    new = policy.evaluate(rollout.inputs)
    ratios = (new.logprobs_BT - rollout.logprobs_BT).exp()
    up = (ratios > 1.2) & (credit.advantages_BT > 0)
    down = (ratios < 0.8) & (credit.advantages_BT < 0)
    updater = updater_for(policy, rollout_size=300, minibatch_size=300, epochs=1)
    found = updater.update(algorithm, rollout, credit, 1)
    assert 0 < (up | down).double().mean() < 1
    assert found["policy/clip_fraction"] == pytest.approx((up | down).double().mean().item())


@catches(
    "loss weights counted per micro-batch",
    "sorted micro-batches keep the loss weights of the unsorted rows",
)
@pytest.mark.parametrize(
    "algorithm", [PPO(), REINFORCE(baseline="value"), REINFORCE(), GRPO(kl_coef=0.1)]
)
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_micro_batch_size_does_not_change_the_result(algorithm, reduction):
    algorithm = type(algorithm)(**{**algorithm.model_dump(), "reduction": reduction})
    thetas = []
    for microbatch_size in (32, 5, 1):
        policy = BanditPolicy()
        rollout = bandit_rollout(policy, 64, 0, 1)
        scorable = rollout.scorable_B.clone()
        scorable[::7] = False
        rollout = type(rollout)(**{**vars(rollout), "scorable_B": scorable})
        updater = updater_for(policy, microbatch_size=microbatch_size, learning_rate=1e-2)
        updater.update(algorithm, rollout, algorithm.assign_credit(rollout), 1)
        thetas.append(policy.theta.detach())
    torch.testing.assert_close(thetas[0], thetas[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(thetas[0], thetas[2], rtol=1e-5, atol=0)


@catches("NaN of a row without a score reaches the gradient")
def test_unscorable_rows_do_not_enter_the_update_whatever_they_hold():
    thetas = []
    for junk in (0.0, torch.nan, torch.inf):
        policy = BanditPolicy()
        rollout = bandit_rollout(policy, 64, 0, 1)
        rewards, scorable = rollout.rewards_BT.clone(), rollout.scorable_B.clone()
        rewards[3], scorable[3] = junk, False
        rollout = type(rollout)(**{**vars(rollout), "rewards_BT": rewards, "scorable_B": scorable})
        for algorithm in (PPO(), REINFORCE(), GRPO()):
            updater_for(policy).update(algorithm, rollout, algorithm.assign_credit(rollout), 1)
        thetas.append(policy.theta.detach())
    assert thetas[0].isfinite().all()
    assert torch.equal(thetas[0], thetas[1])
    assert torch.equal(thetas[0], thetas[2])


def test_optimizer_steps_are_epochs_times_minibatches():
    policy = BanditPolicy()
    rollout = bandit_rollout(policy, 64, 0, 1)
    updater = updater_for(policy, minibatch_size=16, microbatch_size=3, epochs=3)
    updater.update(PPO(), rollout, PPO().assign_credit(rollout), 1)
    assert updater.optimizer.state[policy.theta]["step"] == 12


def test_gradients_that_are_not_finite_are_not_stepped_on():
    policy = BanditPolicy()
    before = policy.theta.detach().clone()
    rollout = bandit_rollout(policy, 64, 0, 1, rewards=REWARDS * torch.inf)
    updater = updater_for(policy, epochs=1, minibatch_size=64)
    found = updater.update(PPO(kl_coef=0), rollout, PPO(kl_coef=0).assign_credit(rollout), 1)
    assert found["skipped_updates"] == 1
    assert math.isnan(found["grad_norm"])
    assert torch.equal(policy.theta, before)


@catches("gradient norm measured, not clipped")
def test_gradient_norm_is_clipped():
    moved = []
    for max_grad_norm in (1e-12, 1.0):
        policy = BanditPolicy()
        rollout = bandit_rollout(policy, 64, 0, 1)
        updater = updater_for(policy, epochs=1, max_grad_norm=max_grad_norm, adam_eps=1e-5)
        updater.update(PPO(), rollout, PPO().assign_credit(rollout), 1)
        moved.append((policy.theta.detach() - REFERENCE.log()).abs().max().item())
    assert moved[0] < 1e-3 * moved[1]  # far below Adam's eps a gradient moves next to nothing


def test_learning_rate_warms_up_and_falls_to_zero():
    def rates(*steps, **settings):
        settings = UpdateSettings(learning_rate=1.0, **settings)
        return [learning_rate(settings, step, 10) for step in steps]

    found = rates(1, 2, 6, 10, schedule="linear", warmup_steps=2)
    assert found == pytest.approx([0.5, 0.9, 0.5, 0.1])
    assert rates(1, 6, 11, schedule="cosine") == pytest.approx([1.0, 0.5, 0.0])
    assert rates(10) == [1]


def test_an_update_learns_at_the_rate_of_its_iteration():
    policy = BanditPolicy()
    rollout = bandit_rollout(policy, 64, 0, 1)
    updater = updater_for(policy, 10, learning_rate=1e-3, schedule="linear")
    found = updater.update(PPO(), rollout, PPO().assign_credit(rollout), 6)
    assert found["learning_rate"] == pytest.approx(5e-4)
    assert [group["lr"] for group in updater.optimizer.param_groups] == pytest.approx([5e-4])


def test_optimizer_state_goes_on_bit_for_bit():
    policy, again = BanditPolicy(), BanditPolicy()
    updater, resumed = updater_for(policy), updater_for(again)
    for step in (1, 2):
        rollout = bandit_rollout(policy, 64, 0, step)
        updater.update(PPO(), rollout, PPO().assign_credit(rollout), step)
        if step == 1:
            again.load_state_dict({k: v.clone() for k, v in policy.state_dict().items()})
            state = updater.state()["optimizer"]
            copied = {i: {k: v.clone() for k, v in s.items()} for i, s in state.items()}
            resumed.load_state({"optimizer": copied})
    resumed.update(PPO(), rollout, PPO().assign_credit(rollout), 2)
    assert torch.equal(policy.theta, again.theta)


def test_credit_of_masked_steps_never_reaches_a_minibatch():
    rollout = bandit_rollout(BanditPolicy(), 8, 0, 1)
    scorable = torch.tensor([True] * 7 + [False])
    rollout = type(rollout)(**{**vars(rollout), "scorable_B": scorable})
    assert Minibatch.of(rollout, PPO().assign_credit(rollout)).mask_BT.sum() == 7


@catches("an update ends by the KL of all minibatches so far")
def test_an_update_ends_where_the_policy_has_gone_far_enough():
    def updated(target_kl):
        policy = BanditPolicy()
        rollout = bandit_rollout(policy, 64, 0, 1)
        settings = {"learning_rate": 0.1, "minibatch_size": 16, "microbatch_size": 5, "epochs": 3}
        updater = updater_for(policy, rollout_size=64, target_kl=target_kl, **settings)
        credit = PPO(kl_coef=0).assign_credit(rollout)
        found = updater.update(PPO(kl_coef=0), rollout, credit, 1)
        return found, updater.optimizer.state[policy.theta]["step"]

    found, steps = updated(0.01)
    assert 1 <= steps < 12
    assert found["policy/early_stop"] == 1
    assert found["policy/last_kl"] > 1.5 * 0.01  # of the minibatch that was left out
    assert found["policy/approx_kl"] < found["policy/last_kl"]
    found, steps = updated(None)
    assert (steps, found["policy/early_stop"]) == (12, 0)


@catches(
    "an update ends by the clipped steps of its newest micro-batch, or of all minibatches so far",
    "steps without an advantage count among those that may be clipped",
)
@pytest.mark.parametrize("most", [0.3, 0.6, None])
def test_an_update_ends_where_more_steps_are_clipped_than_wanted(most):
    policy, algorithm = BanditPolicy(), PPO(kl_coef=0, clip=0.2)
    rollout = bandit_rollout(policy, 64, 0, 1)
    drawn = torch.randn(rollout.logprobs_BT.shape, generator=torch.Generator().manual_seed(0))
    rollout = replace(rollout, logprobs_BT=rollout.logprobs_BT + 0.1 * drawn)  # not all at once
    credit = algorithm.assign_credit(rollout)
    some = torch.arange(64)[:, None] % 4 > 0
    credit = replace(credit, advantages_BT=credit.advantages_BT * some)
    settings = {"learning_rate": 0.01, "minibatch_size": 64, "microbatch_size": 5, "epochs": 30}
    updater = updater_for(policy, rollout_size=64, target_clip_fraction=most, **settings)
    seen = []  # before each of the minibatches, which are the whole rollout
    take = updater._optimizer_step

    def looked_at(*args):
        new = policy.evaluate(rollout.inputs)
        seen.append(clipped(new.logprobs_BT, rollout.logprobs_BT, credit.advantages_BT, 0.2))
        return take(*args)

    updater._optimizer_step = looked_at
    found = updater.update(algorithm, rollout, credit, 1)
    too_many = [i for i, share in enumerate(seen) if share > (most or 1)]
    assert too_many == ([] if most is None else [len(seen) - 1])
    steps = updater.optimizer.state[policy.theta]["step"]
    assert (steps, found["policy/early_stop"]) == ((30, 0) if most is None else (len(seen) - 1, 1))
    assert found["policy/last_clip_fraction"] == pytest.approx(seen[-1])
    assert found["policy/clip_fraction"] == pytest.approx(sum(seen) / len(seen))


def clipped(new_BT, old_BT, advantages_BT, clip):
    """Share of the steps with an advantage whose ratio went past the clip in its direction."""
    ratios, signs = (new_BT - old_BT).exp(), advantages_BT.sign()
    past = ((ratios - 1) * signs > clip) & (signs != 0)
    return float(past.sum() / (signs != 0).sum())


def test_an_update_without_limits_never_waits_to_see_how_far_the_policy_went(monkeypatch):
    looks = []
    newest = Diagnostics.newest
    monkeypatch.setattr(Diagnostics, "newest", lambda self: looks.append(1) or newest(self))
    policy = BanditPolicy()
    rollout = bandit_rollout(policy, 64, 0, 1)
    credit = PPO().assign_credit(rollout)
    for limits, expected in (
        ({}, 1),
        ({"target_kl": 100.0}, 9),
        ({"target_clip_fraction": 0.99}, 9),
    ):
        looks.clear()
        updater = updater_for(policy, rollout_size=64, minibatch_size=32, epochs=4, **limits)
        updater.update(PPO(), rollout, credit, 1)
        assert len(looks) == expected  # 8 minibatches, and the metrics


@catches("an update left at its first minibatch counts as a failed one")
def test_an_update_that_ends_before_its_first_step_is_no_failure():
    policy = BanditPolicy()
    rollout = bandit_rollout(policy, 64, 0, 1)
    rollout = replace(rollout, logprobs_BT=rollout.logprobs_BT + 1)
    updater = updater_for(policy, rollout_size=64, minibatch_size=16, target_kl=0.01)
    algorithm = PPO(kl_coef=0)
    found = updater.update(algorithm, rollout, algorithm.assign_credit(rollout), 1)
    assert (found["policy/early_stop"], found["grad_norm"]) == (1, 0)


@catches("with one step per rollout inexact log-probs of sampling enter the ratio")
@pytest.mark.parametrize("algorithm", [GRPO(kl_coef=0.1, group_size=4), REINFORCE(kl_coef=0)])
def test_where_one_step_follows_the_policy_it_finds_is_the_old_one(algorithm):
    """Log-probs of a rollout that are not exact (bf16) then change nothing."""

    def updated(noise, source):
        policy = BanditPolicy()
        rollout = bandit_rollout(policy, 64, 0, 1)
        drawn = torch.randn(rollout.logprobs_BT.shape, generator=torch.Generator().manual_seed(0))
        updater = updater_for(policy, rollout_size=64, minibatch_size=64, epochs=1)
        updater.old_logprobs = OldLogprobs(source)
        credit = algorithm.assign_credit(rollout)
        inexact = replace(rollout, logprobs_BT=rollout.logprobs_BT + noise * drawn)
        found = updater.update(algorithm, inexact, credit, 1)
        return policy.theta.detach(), found

    expected, _ = updated(0.0, "recomputed")
    theta, found = updated(0.1, "update")
    assert torch.equal(theta, expected)
    assert (found["policy/ratio_mean"], found["policy/approx_kl"]) == (1, 0)


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("grpo", [], "update"),
        ("grpo", ["--update.minibatch-size", "32"], "recomputed"),
        ("grpo", ["--update.epochs", "4"], "recomputed"),
        ("rloo", [], "recomputed"),
        ("rloo", ["--algorithm.kl-coef", "0"], "update"),
        ("ppo", ["--update.minibatch-size", "64"], "recomputed"),
    ],
)
def test_log_probs_are_not_looked_at_again_only_where_nothing_asks_for_them(name, flags, expected):
    own = ["--model.path", "m", "--data.path", "d", "--rewards.functions", "f.py:f"]
    settings = settings_of(name, [*own, *flags])
    assert old_logprobs_of(settings, False, 1).source == expected
    assert old_logprobs_of(settings, True, 1).source == "sampled"
