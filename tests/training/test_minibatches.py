"""What an epoch goes over: every step once, in an order of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch

from lmpg.algorithms.ppo import PPO
from lmpg.gym.classic.trpo import TRPO
from lmpg.runtime.seeding import generator
from tests.support.bandit import BanditPolicy, bandit_rollout, updater_for
from tests.support.planted import catches


@catches(
    "last minibatch dropped",
    "an update's minibatches not shuffled, or alike in all epochs or updates",
)
def test_every_epoch_of_an_update_takes_every_row_once_in_an_order_of_its_own():
    class Watched(BanditPolicy):
        def evaluate(self, inputs):
            if "rows" in inputs:
                seen.append(inputs["rows"].flatten().tolist())
            return super().evaluate(inputs)

    seen: list[list[int]] = []
    policy = Watched()
    rollout = bandit_rollout(policy, 60, 0, 1)
    rows = torch.arange(60)[:, None]
    rollout = replace(rollout, inputs={**rollout.inputs, "rows": rows})
    sizes = {"rollout_size": 60, "minibatch_size": 20, "microbatch_size": 20}
    updater = updater_for(policy, 2, **sizes, epochs=3)
    for step in (1, 2):
        updater.update(PPO(), rollout, PPO().assign_credit(rollout), step)
    assert [len(minibatch) for minibatch in seen] == [20] * 18
    epochs = [list(chain(*seen[i : i + 3])) for i in range(0, 18, 3)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(60)]}) == 7


@catches("steps of a fitted critic not shuffled")
@pytest.mark.parametrize(("num_steps", "sizes"), [(130, [65, 65]), (150, [75, 75]), (31, [31])])
def test_every_epoch_of_a_fitted_critic_takes_every_step_once(num_steps, sizes):
    method = TRPO(critic_epochs=2, critic_minibatch_size=64)
    found = [x.tolist() for x in method._minibatches(num_steps, generator("fit"))]
    assert [len(x) for x in found] == 2 * sizes
    epochs = [list(chain(*found[: len(sizes)])), list(chain(*found[len(sizes) :]))]
    assert all(sorted(epoch) == list(range(num_steps)) for epoch in epochs)
    assert epochs[0] != epochs[1]
