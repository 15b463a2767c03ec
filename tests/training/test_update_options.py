"""What an update does besides: a critic's warm-up, whitened minibatches, a word when nothing can be
learned."""

from dataclasses import replace

import pytest
import torch

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.raft import RAFT
from lmpg.algorithms.reinforce import REINFORCE
from lmpg.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from lmpg.runtime.processes import Processes
from lmpg.training.online import Online
from lmpg.training.source import Collected
from tests.support.bandit import BanditPolicy, bandit_rollout, updater_for
from tests.support.planted import catches


class BanditWithValueHead(BanditPolicy):
    """The value's parameter is called as a language model's value head, on a trunk that it reads
    with the arms."""

    def __init__(self):
        super().__init__()
        self.value_head = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(self.value_head.weight, 0.1)
        torch.nn.init.zeros_(self.value_head.bias)

    def evaluate(self, inputs):
        found = super().evaluate(inputs)
        value = self.value_head(self.theta)
        return replace(found, values_BT=value.expand(found.logprobs_BT.shape))


def moved(policy, iterations, **settings):
    """Names of the parameters that `iterations` of PPO moved, and the metrics of the last one."""
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    updater = updater_for(policy, 9, rollout_size=64, minibatch_size=32, epochs=2, **settings)
    found = {}
    for iteration in range(1, iterations + 1):
        rollout = bandit_rollout(policy, 64, 0, iteration)
        credit = PPO(value_coef=1.0).assign_credit(rollout)
        found = updater.update(PPO(value_coef=1.0), rollout, credit, iteration)
    return {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}, found


@catches("the trunk moves in the critic's warm-up", "the warm-up never ends")
def test_the_critics_warm_up_moves_the_value_head_alone():
    head = {"value_head.weight", "value_head.bias"}
    found, metrics = moved(BanditWithValueHead(), 2, critic_warmup=2)
    assert found == head
    assert metrics["policy/last_kl"] == 0
    assert metrics["grad_norm"] > 0
    assert moved(BanditWithValueHead(), 3, critic_warmup=2)[0] == {"theta", *head}
    assert moved(BanditWithValueHead(), 1)[0] == {"theta", *head}


def test_a_warm_up_goes_on_after_a_resume_as_if_nothing_had_been():
    def trained(policy, first, last, state=None):
        updater = updater_for(policy, 9, rollout_size=64, minibatch_size=32, critic_warmup=2)
        if state:
            updater.load_state(state)
        for iteration in range(first, last + 1):
            rollout = bandit_rollout(policy, 64, 0, iteration)
            updater.update(PPO(), rollout, PPO().assign_credit(rollout), iteration)
        return updater.state()

    whole, halved = BanditWithValueHead(), BanditWithValueHead()
    trained(whole, 1, 4)
    trained(halved, 2, 4, trained(halved, 1, 1))
    for p, q in zip(whole.parameters(), halved.parameters()):
        assert torch.equal(p, q)


def gradient_norm(minibatch_size, microbatch_size, **fields):
    """Of the first pass; Adam's first step would hide the length of a gradient."""
    policy = BanditPolicy()
    rollout = bandit_rollout(policy, 64, 0, 1)
    algorithm = REINFORCE(kl_coef=0, **fields)
    sizes = {"minibatch_size": minibatch_size, "microbatch_size": microbatch_size}
    updater = updater_for(policy, rollout_size=64, epochs=1, **sizes)
    credit = algorithm.assign_credit(rollout)
    return updater.update(algorithm, rollout, credit, 1)["grad_norm"]


@catches("advantages whitened per micro-batch", "minibatches not whitened")
def test_minibatches_are_whitened_whole_whatever_the_micro_batches():
    own = {"baseline": "none", "whiten_minibatches": True}
    expected = gradient_norm(32, 32, **own)
    assert gradient_norm(32, 5, **own) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(gradient_norm(32, 32, whiten=True), rel=1e-3)
    # one minibatch is the whole rollout
    assert gradient_norm(64, 64, **own) == pytest.approx(gradient_norm(64, 64, whiten=True))


class SameRewards:
    """A source of rollouts in which every arm pays as much as any other."""

    advice = ""

    def __init__(self, policy):
        self.policy = policy

    def collect(self, iteration):
        rewards = torch.ones(3)
        return Collected(bandit_rollout(self.policy, 8, 0, iteration, rewards=rewards), {})


@catches("advantages of 0 are not told of", "responses that are all too bad are not told of")
@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        (ReinforcePlusPlus(kl_coef=0), "all advantages are 0, so no response or action is better"),
        (REINFORCE(kl_coef=0), "all advantages are 0, so no response or action is better"),
        (GRPO(group_size=4), "the responses of each group have the same score"),
        (
            RAFT(group_size=4, min_score=2.0),
            "no response is kept, as all score less than algorithm.min_score",
        ),
        (RAFT(group_size=4), None),  # learns from the first of equals
    ],
)
def test_a_rollout_that_teaches_nothing_is_told_of_once(algorithm, why, caplog):
    policy = BanditPolicy()
    nothing = dict.fromkeys(("tracker", "folder", "settings", "every", "save_policy"))
    online = Online(
        **nothing,
        policy=policy,
        algorithm=algorithm,
        source=SameRewards(policy),
        updater=updater_for(policy, rollout_size=8, minibatch_size=8),
        total_steps=2,
        processes=Processes(),
    )
    online.iterate(1)
    online.iterate(2)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (why is not None)
    assert all(f"nothing can be learned from this step: {why}" in x for x in said)
