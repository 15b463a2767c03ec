"""Group methods and distillation, as numbers: OPO, MaxRL, RAFT, and what a teacher gives."""

from dataclasses import replace

import pytest
import torch

from lmpg.algorithms.distillation import Distillation
from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.raft import RAFT
from lmpg.settings.section import RunStopped
from lmpg.types import Evaluation, Minibatch
from tests.algorithms.test_algorithms import rollout_of
from tests.support.bandit import (
    REFERENCE,
    BanditPolicy,
    bandit_rollout,
    trained_probabilities,
    updater_for,
)
from tests.support.planted import catches


@catches("OPO: lengths with what is not in the mask")
def test_grpos_length_weighted_baseline_counts_the_steps_in_the_mask():
    rollout = rollout_of([[0.0, 0], [0, 3]], mask=[[1, 1], [0, 1]])
    found = GRPO(group_size=2, advantage="length_weighted").assign_credit(rollout).advantages_BT
    assert found.tolist() == [[-1, -1], [0, 2]]


def test_relative_scores_below_zero_stop_the_run_with_the_reason():
    algorithm = GRPO(group_size=2, advantage="relative")
    with pytest.raises(RunStopped, match=r"a score is -3, but .* expected scores of 0 or more"):
        algorithm.assign_credit(rollout_of([[1.0], [-3.0]]))
    unscored = rollout_of([[1.0], [-3.0], [1.0], [0.0]], scorable=[True, False, True, True])
    found = algorithm.assign_credit(unscored).advantages_BT
    assert found[:, 0].tolist() == [0, 0, 1, -1]


@catches("RAFT: the loss divided by all tokens, not by those of the best responses")
def test_raft_takes_the_supervised_step_on_the_best_responses_alone():
    policy, rows = BanditPolicy(), 60
    rollout = bandit_rollout(policy, rows, 0, 1)
    algorithm = RAFT(group_size=4)
    credit = algorithm.assign_credit(rollout)
    best = rollout.rewards_BT.view(-1, 4).argmax(1) + 4 * torch.arange(rows // 4)
    assert credit.learned_B.nonzero()[:, 0].tolist() == best.tolist()
    expected = -policy.evaluate(rollout.rows(best).inputs).logprobs_BT.mean()
    (gradient,) = torch.autograd.grad(expected, policy.theta)
    settings = {"rollout_size": rows, "minibatch_size": rows, "microbatch_size": 4, "epochs": 1}
    found = updater_for(policy, **settings).update(algorithm, rollout, credit, 1)
    assert found["loss/policy"] == pytest.approx(expected.item())
    assert found["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-5)


def test_raft_keeps_nothing_below_its_least_score_and_then_learns_nothing():
    rollout = rollout_of([[0.0], [1.0], [0.0], [0.0]])
    credit = RAFT(group_size=2, min_score=0.5).assign_credit(rollout)
    assert credit.learned_B.tolist() == [False, True, False, False]
    assert len(Minibatch.of(rollout, credit).mask_BT) == 1
    credit = RAFT(group_size=2, min_score=2.0).assign_credit(rollout)
    assert not Minibatch.of(rollout, credit).mask_BT.any()


@catches(
    "distillation: the student's log-probs less the teacher's as the gain",
    "distillation: a token judged by all that came after it, though γ = 0",
)
def test_distillation_gains_by_what_the_teacher_finds_likelier():
    rollout = rollout_of([[5.0, 0, 9]], mask=[[1, 0, 1]])
    teacher = torch.tensor([[-0.5, 0.0, -3.0]])
    rollout = replace(rollout, ref_logprobs_BT=teacher)  # the student's are −1
    for gamma, expected in ((0.0, [0.5, 0, -2]), (0.5, [-0.5, 0, -2]), (1.0, [-1.5, 0, -2])):
        found = Distillation(gamma=gamma).assign_credit(rollout)
        assert found.advantages_BT[0].tolist() == expected
        assert found.rewards_BT[0].tolist() == [0.5, 0, -2]


def test_distillation_asks_for_a_teacher_and_for_what_its_divergence_needs():
    assert Distillation().needs == {"teacher", "reference", "old_logprobs"}
    whole = Distillation(divergence="jsd")
    assert whole.needs == {"teacher", "reference", "divergence"}
    new = Evaluation(torch.zeros(1, 1), torch.zeros(1, 1), None, torch.full((1, 1), 0.25))
    assert set(whole.loss_terms(new, None)) == {"distillation"}


@catches("distillation: the reverse KL climbed")
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_distillation_ends_at_the_teacher(gamma):
    class Novice(BanditPolicy):
        def __init__(self):
            super().__init__()
            self.theta.data = torch.tensor([0.1, 0.1, 0.8]).log()

    found = trained_probabilities(Distillation(gamma=gamma), policy=Novice())
    torch.testing.assert_close(found, REFERENCE, atol=0.02, rtol=0)
