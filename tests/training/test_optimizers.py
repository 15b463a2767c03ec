"""Optimizers besides AdamW: what they keep, how they learn, and that they go on bit for bit."""

from __future__ import annotations

import importlib.util
import math
import sys

import pytest
import torch
from torch import nn

from lmpg.algorithms.fixed_data.maximum_likelihood import MaximumLikelihood
from lmpg.language.objectives.sft_objective import SFTObjective
from lmpg.runs import checkpoint
from lmpg.runtime.processes import SingleProcess
from lmpg.settings.section import UserError
from lmpg.training.offline import OfflineUpdater
from lmpg.training.optimizer import new_optimizer, policy_optimizer, take_step
from lmpg.training.settings import OfflineSettings, UpdateSettings
from tests.support.objectives import random_texts, tiny_policy
from tests.support.planted import catches
from tests.support.programs import bytes_of, outcome, own_parts, run_here, weights
from tests.support.several_runs import forked
from tests.support.tiny import save_tiny, tiny_model

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
EIGHT_BIT = pytest.param("adamw_8bit", marks=needs_bitsandbytes)
EIGHT_BIT_ROUNDED = pytest.param("adamw_8bit", 1e-3, marks=needs_bitsandbytes)
SINGLE = SingleProcess()
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
"""Matrices of 4096 numbers and more, the smallest that have 8-bit states."""


class Wide(nn.Module):
    """A policy of a matrix and a vector, with a critic; gradients are the same in each step."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.trunk = nn.Parameter(torch.randn(64, 128, generator=generator))
        self.bias = nn.Parameter(torch.randn(128, generator=generator))
        self.value_head = nn.Linear(64, 64)
        with torch.no_grad():
            for p in self.value_head.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def step(self, optimizer: torch.optim.Optimizer, settings: UpdateSettings, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * group["scale"]
        return take_step(optimizer, settings, SingleProcess())


def moved(name: str, rate: float, **settings: float) -> dict[str, torch.Tensor]:
    """How far two steps move each parameter."""
    policy = Wide()
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    asked = UpdateSettings(optimizer=name, learning_rate=rate, **settings)  # type: ignore[arg-type]
    optimizer = policy_optimizer(policy, asked)
    for seed in (1, 2):
        policy.step(optimizer, asked, seed)
    return {n: p.detach() - before[n] for n, p in policy.named_parameters()}


@catches("Adafactor's steps relative to the weights")
@pytest.mark.parametrize("name", ["adamw", EIGHT_BIT, "adafactor"])
def test_a_step_is_of_the_size_of_the_learning_rate_and_the_critic_has_its_own(name):
    alike, faster = moved(name, 1e-3), moved(name, 1e-3, critic_learning_rate=4e-3)
    for parameter, x in alike.items():
        root_mean_square = float(x.square().mean().sqrt())
        assert 0.5e-3 < root_mean_square < 2.5e-3
        scale = 4 if parameter.startswith("value_head") else 1
        torch.testing.assert_close(faster[parameter], scale * x, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", [EIGHT_BIT, "adafactor"])
def test_weight_decay_is_that_of_adamw(name):
    decayed, plain = moved(name, 1e-3, weight_decay=0.5), moved(name, 1e-3)
    matrix = Wide().trunk.detach()
    found = decayed["trunk"] - plain["trunk"]
    torch.testing.assert_close(found, -2 * 0.5e-3 * matrix, atol=1e-5, rtol=2e-3)


@catches("8-bit AdamW with bitsandbytes' own epsilon")
@needs_bitsandbytes
def test_8_bit_adamw_is_adamw_within_the_rounding_of_its_states():
    for epsilon in (1e-8, 1.0):
        found, expected = (
            moved(name, 1e-3, adam_eps=epsilon)["trunk"] for name in ("adamw_8bit", "adamw")
        )
        assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", ["adamw", EIGHT_BIT, "adafactor"])
def test_gradients_are_clipped_and_none_that_is_not_finite_moves_anything(name):
    policy, asked = Wide(), UpdateSettings(optimizer=name, max_grad_norm=1.0)
    optimizer = policy_optimizer(policy, asked)
    assert policy.step(optimizer, asked, 1) > 50
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    for p in policy.parameters():
        p.grad = torch.full_like(p, math.inf)
    take_step(optimizer, asked, SingleProcess())
    assert all(torch.equal(p, before[n]) for n, p in policy.named_parameters())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("adamw", 8.0, 8.01), pytest.param("adamw_8bit", 2.0, 2.3, marks=needs_bitsandbytes),
     ("adafactor", 0.0, 0.15)],
)  # fmt: skip
def test_an_optimizer_keeps_as_many_bytes_for_a_number_as_its_setting_says(name, low, high):
    weight = nn.Parameter(torch.zeros(256, 256))
    optimizer = new_optimizer([weight], UpdateSettings(optimizer=name))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = [x for x in optimizer.state[weight].values() if isinstance(x, torch.Tensor)]
    size = sum(x.nbytes for x in kept) / weight.numel()
    assert low <= size <= high


def updater(name: str, microbatch: int = 4) -> OfflineUpdater:
    settings = OfflineSettings(
        optimizer=name,  # type: ignore[arg-type]
        minibatch_size=4,
        microbatch_size=microbatch,
        learning_rate=1e-3,
        schedule="linear",
        adam_eps=1e-4,
    )
    texts, policy = random_texts(16), tiny_policy(tiny_model(**WIDE))
    objective = SFTObjective(policy, MaximumLikelihood(), (texts, texts[:4]), 0, SINGLE)
    return OfflineUpdater(objective, settings, SINGLE)


@catches("an optimizer's counters or 8-bit codes lost in a checkpoint")
@pytest.mark.parametrize("name", [EIGHT_BIT, "adafactor"])
def test_a_checkpoint_of_the_optimizer_goes_on_bit_for_bit(name, tmp_path):
    straight = updater(name)
    for step in (1, 2):
        straight.update(step)
    weights = straight.objective.module.state_dict()
    state = {"updater": straight.state(), "policy": {k: x.clone() for k, x in weights.items()}}
    checkpoint.save(tmp_path, 2, state, keep=1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    resumed = updater(name)
    resumed.objective.module.load_state_dict(found[1]["policy"])
    resumed.load_state(found[1]["updater"])
    for one in (straight, resumed):
        one.update(3)
        one.update(4)
    assert bytes_of(resumed.state()) == bytes_of(straight.state())
    after = resumed.objective.module.state_dict()
    assert all(torch.equal(x, after[k]) for k, x in straight.objective.module.state_dict().items())


@pytest.mark.parametrize(("name", "within"), [("adafactor", 1e-4), EIGHT_BIT_ROUNDED])
def test_microbatches_move_a_step_by_rounding_alone(name, within):
    one, other = updater(name), updater(name, microbatch=1)
    start = {n: p.detach().clone() for n, p in one.objective.module.named_parameters()}
    for step in (1, 2, 3, 4):
        one.update(step)
        other.update(step)
    theirs = dict(other.objective.module.named_parameters())
    for n, p in one.objective.module.named_parameters():
        apart, way = (p.detach() - theirs[n]).norm(), (p.detach() - start[n]).norm()
        assert apart <= within * way, n


@pytest.mark.slow
@pytest.mark.parametrize("name", [EIGHT_BIT, "adafactor"])
def test_a_run_with_it_is_resumed_bit_for_bit(name, tmp_path):
    parts = own_parts(tmp_path / "parts")
    save_tiny(tmp_path / "parts" / "model", **WIDE)
    flags = {
        **parts,
        "update.optimizer": name,
        "update.learning-rate": 1e-3,
        "update.critic-learning-rate": 3e-3,
        "update.epochs": 1,
    }
    whole = run_here("ppo", {**flags, "run.output-dir": tmp_path / "whole"})
    part = {**flags, "run.output-dir": tmp_path / "part"}
    run_here("ppo", {**part, "run.total-steps": 2})
    run_here("ppo", {**part, "run.resume": True})
    assert outcome(tmp_path / "part") == outcome(whole)


@catches("8-bit states of a sum that only one process has")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "within"), [("adafactor", 1e-4), EIGHT_BIT_ROUNDED])
def test_two_processes_move_the_weights_as_one_but_for_rounding(name, within, tmp_path):
    parts = own_parts(tmp_path / "parts")
    save_tiny(tmp_path / "parts" / "model", **WIDE)
    flags = {**parts, "update.optimizer": name, "update.learning-rate": 1e-3, "update.epochs": 1}
    one = {**flags, "run.output-dir": tmp_path / "one", "run.total-steps": 2}
    two = {**one, "run.output-dir": tmp_path / "two"}
    forked(2, [("ppo", two)], tmp_path / "log")
    found, expected = weights(tmp_path / "two"), weights(run_here("ppo", one))
    start = dict(tiny_model(**WIDE).named_parameters())
    for n, p in start.items():
        mine, theirs = found[f"model.{n}"], expected[f"model.{n}"]
        assert (mine - theirs).norm() <= within * (theirs - p).norm(), n


def test_8_bit_adamw_without_its_library_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"update\.optimizer = adamw_8bit needs bitsandbytes.*pip"):
        new_optimizer([nn.Parameter(torch.zeros(3))], UpdateSettings(optimizer="adamw_8bit"))
