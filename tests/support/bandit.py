"""A policy over three arms, run through the real update: the smallest rollout there is."""

import torch
from torch import nn

from lmpg.runtime.processes import Processes
from lmpg.runtime.seeding import generator
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater
from lmpg.types import Evaluation, Rollout

REFERENCE = torch.tensor([0.5, 0.3, 0.2])
REWARDS = torch.tensor([0.0, 1.0, 2.0])
OPTIMUM = torch.tensor([0.179000, 0.291944, 0.529056])  # G15: ∝ π_ref · exp(r / β), β = 1


class BanditPolicy(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(REFERENCE.log())
        self.value = nn.Parameter(torch.zeros(()))

    def evaluate(self, inputs):
        logprobs_V = self.theta.log_softmax(0)
        arms_BT = inputs["arms"]
        entropy = -(logprobs_V.exp() * logprobs_V).sum()
        return Evaluation(
            logprobs_V.index_select(0, arms_BT.reshape(-1)).view(arms_BT.shape),
            entropy.expand(arms_BT.shape),
            self.value.expand(arms_BT.shape),
        )


def bandit_rollout(policy, rows, seed, step, baseline=None, rewards=REWARDS):
    with torch.no_grad():
        probs = policy.theta.softmax(0)
        drawn = torch.multinomial(probs, rows, True, generator=generator(seed, "arms", step))
        arms_BT = drawn[:, None]
        old = policy.evaluate({"arms": arms_BT})
    ones = torch.ones(rows, 1).bool()
    return Rollout(
        inputs={"arms": arms_BT},
        mask_BT=ones,
        logprobs_BT=old.logprobs_BT,
        rewards_BT=rewards[arms_BT],
        terminated_BT=ones,
        ended_BT=ones,
        scorable_B=ones[:, 0],
        values_BT=old.values_BT,
        next_values_BT=torch.zeros(rows, 1),
        ref_logprobs_BT=REFERENCE.log()[arms_BT],
        greedy_scores_B=rewards[probs.argmax()].expand(rows),
        baseline=baseline,
    )


def updater_for(policy, total_steps=1, seed=0, **settings):
    return Updater(policy, UpdateSettings(**settings), total_steps, seed, Processes())


def trained_probabilities(algorithm, steps=300, rows=2048, seed=0, policy=None, **settings):
    """Probabilities after `steps` iterations of rollout and update, learning rate down to 0."""
    policy = policy or BanditPolicy()
    settings = {
        "learning_rate": 0.05,
        "schedule": "linear",
        "epochs": 1,
        "rollout_size": rows,
        "minibatch_size": rows,
        "microbatch_size": rows,
        "max_grad_norm": 1e9,
    } | settings
    updater = updater_for(policy, steps, seed, **settings)
    baseline = None
    for step in range(1, steps + 1):
        rollout = bandit_rollout(policy, rows, seed, step, baseline)
        credit = algorithm.assign_credit(rollout)
        updater.update(algorithm, rollout, credit, step)
        mean_return = credit.rewards_BT.mean()
        baseline = mean_return if baseline is None else 0.9 * baseline + 0.1 * mean_return
    return policy.theta.detach().softmax(0)
