"""Scores on their way into a rollout: greedy, processed, and those of truncated completions."""

from __future__ import annotations

import pytest
import torch

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.algorithms.remax import ReMax
from lmpg.settings.section import RunStopped
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater
from lmpg.types import Minibatch
from tests.language.rollouts.test_collect import FakeScorer, source_of
from tests.support.planted import catches


def test_remax_gets_the_score_of_the_greedy_response_to_each_rows_prompt():
    source = source_of(ReMax())
    rollout = source.collect(1).rollout
    # 16 rows for 6 prompts, so most prompts come several times
    by_prompt = {}
    for ids, length, score in zip(
        rollout.inputs["prompt_ids"].tolist(),
        rollout.inputs["prompt_lengths"].tolist(),
        rollout.greedy_scores_B.tolist(),
    ):
        by_prompt.setdefault(tuple(ids[-length:]), set()).add(score)
    assert len(by_prompt) == 6
    for prompt in source.sampler.prompts:
        alone = source.generator.generate([prompt], 1, None)
        assert by_prompt[tuple(prompt.ids)] == {float(len(alone.texts[0]))}


def test_each_distinct_prompt_is_answered_greedily_once():
    scorer = FakeScorer()
    source_of(ReMax(), scorer).collect(1)
    assert len(scorer.seen[0]) == len(set(scorer.seen[0])) == 6


def test_without_greedy_needs_nothing_greedy_is_sampled():
    collected = source_of(PPO()).collect(1)
    assert collected.rollout.greedy_scores_B is None
    assert "objective/greedy_scores" not in collected.metrics


class FailsOnGreedy(FakeScorer):
    """No score for the prompt "a" where each prompt comes once, as greedy ones do."""

    def score(self, prompts, completions, completion_ids, columns):
        found = super().score(prompts, completions, completion_ids, columns)
        if len(set(prompts)) == len(prompts):
            found.totals[prompts.index("a")] = None
        return found


@catches(
    "a greedy response without score counts as 0",
    "greedy scores in the order of distinct prompts",
)
def test_a_row_whose_greedy_response_has_no_score_is_left_out_and_counted():
    source = source_of(ReMax(), FailsOnGreedy())
    collected = source.collect(1)
    rows = [ids[-1] for ids in collected.rollout.inputs["prompt_ids"].tolist()]
    mine = source.sampler.prompts[0].ids[-1]
    lengths = collected.rollout.inputs["prompt_lengths"].tolist()
    hit = [last == mine and length == 1 for last, length in zip(rows, lengths)]
    assert 0 < sum(hit) < 16
    assert collected.rollout.scorable_B.tolist() == [not x for x in hit]
    assert collected.metrics["reward_errors"] == sum(hit)
    assert (collected.rollout.rewards_BT[torch.tensor(hit)] == 0).all()


@catches("greedy scores compared raw with processed ones")
def test_greedy_scores_are_processed_like_all_others():
    raw, clipped = (source_of(ReMax(), **s).collect(1) for s in ({}, {"score_clip": 3.0}))
    expected_B = raw.rollout.greedy_scores_B.clamp(-3, 3)
    assert torch.equal(clipped.rollout.greedy_scores_B, expected_B)
    assert not torch.equal(clipped.rollout.greedy_scores_B, raw.rollout.greedy_scores_B)


def test_raw_and_processed_scores_are_told_apart():
    plain = source_of(PPO()).collect(1)
    source = source_of(PPO(), score_clip=3.0)
    collected = source.collect(1)
    assert "objective/shaped_scores" not in plain.metrics
    for name in ("objective/scores", "reward", "rewards/length/mean"):
        assert collected.metrics[name] == plain.metrics[name]
    assert collected.metrics["objective/shaped_scores"] == pytest.approx(
        float(plain.rollout.scores_B.clamp(-3, 3).mean())
    )
    assert source.evaluate() == source_of(PPO()).evaluate()  # which knows raw scores alone


@catches("running statistics not saved")
def test_running_statistics_go_on_after_a_resume():
    whole = source_of(PPO(), normalise="running")
    first = whole.collect(1)
    assert first.metrics["objective/shaped_scores"] == pytest.approx(0, abs=1e-6)
    state = whole.state()
    assert state["scores"]["mean"] == pytest.approx(first.metrics["reward"])
    second = whole.collect(2).rollout
    resumed = source_of(PPO(), normalise="running")
    resumed.load_state(state)
    assert torch.equal(resumed.collect(2).rollout.rewards_BT, second.rewards_BT)
    fresh = source_of(PPO(), normalise="running").collect(2).rollout
    assert not torch.equal(fresh.rewards_BT, second.rewards_BT)


def truncated_rows(rollout):
    ends = rollout.inputs["response_ids"].gather(1, rollout.inputs["response_lengths"][:, None] - 1)
    cut_B = ends[:, 0] != 1
    assert 0 < cut_B.sum() < 16
    return cut_B


@catches("a masked response counts as an error")
def test_masked_truncated_responses_leave_the_loss_but_are_no_errors():
    collected = source_of(PPO(), truncated="mask", max_error_share=0.0).collect(1)
    cut_B = truncated_rows(collected.rollout)
    assert torch.equal(collected.rollout.scorable_B, ~cut_B)
    assert collected.metrics["reward_errors"] == 0


@catches("score of a masked response in the running statistics")
def test_masked_truncated_responses_stay_out_of_the_running_statistics():
    source = source_of(PPO(), truncated="mask", normalise="running")
    rollout = source.collect(1).rollout
    assert source.state()["scores"]["count"] == (~truncated_rows(rollout)).sum()
    assert rollout.scores_B[rollout.scorable_B].mean() == pytest.approx(0, abs=1e-6)


@catches(
    "truncated responses count as terminated",
    "truncated responses bootstrapped with the value before the last token",
)
def test_truncation_bootstraps_with_the_value_after_the_last_token():
    source = source_of(PPO(), truncated="bootstrap")
    policy = source.generator.policy
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    rollout = source.collect(1).rollout
    cut_B = truncated_rows(rollout)
    last_BT = rollout.ended_BT
    assert last_BT.sum(1).tolist() == [1] * 16
    assert torch.equal(rollout.terminated_BT, last_BT & ~cut_B[:, None])
    for b in range(16):
        prompt = rollout.inputs["prompt_ids"][b][-rollout.inputs["prompt_lengths"][b] :]
        length = rollout.inputs["response_lengths"][b]
        ids = torch.cat([prompt, rollout.inputs["response_ids"][b][:length]])
        hidden = policy.trunk(input_ids=ids[None]).last_hidden_state[0, -1]
        expected = policy.value_head(hidden).item() if cut_B[b] else 0.0
        assert float(rollout.next_values_BT[b, length - 1]) == pytest.approx(expected, abs=1e-5)
    plain = source_of(PPO()).collect(1).rollout
    assert torch.equal(plain.terminated_BT, plain.ended_BT)


class StepScorer(FakeScorer):
    """1/4 on the first token of each response, as part of its total."""

    def score(self, prompts, completions, completion_ids, columns):
        found = super().score(prompts, completions, completion_ids, columns)
        found.steps[:] = [[(0, 0.25)] for _ in completions]
        return found


def test_process_rewards_reach_the_rollout():
    rollout = source_of(PPO(), StepScorer()).collect(1).rollout
    plain = source_of(PPO()).collect(1).rollout
    torch.testing.assert_close(rollout.scores_B, plain.scores_B)
    lengths_B = rollout.inputs["response_lengths"]
    assert (rollout.rewards_BT[lengths_B > 1, 0] == 0.25).all()
    assert (lengths_B > 1).any()


def test_no_reference_is_needed_where_nobody_asks_for_kl():
    source = source_of(GRPO(group_size=4, kl_coef=0.0))
    source.reference = None
    collected = source.collect(1)
    assert collected.rollout.ref_logprobs_BT is None
    assert "objective/kl" not in collected.metrics


def test_a_step_that_is_stopped_leaves_no_trace_in_the_statistics():
    source = source_of(
        PPO(), FakeScorer(fails="aeiou0123456789"), max_error_share=0.01, normalise="running"
    )
    with pytest.raises(RunStopped):
        source.collect(1)
    assert source.state()["scores"]["count"] == 0


@catches("the critic's learning rate set but not used")
def test_the_critic_is_updated_with_its_own_learning_rate():
    source = source_of(PPO())
    rollout = source.collect(1).rollout
    policy = source.generator.policy
    before = {name: x.clone() for name, x in policy.trainable_state().items()}
    settings = UpdateSettings(learning_rate=1e-4, critic_learning_rate=1e-30, epochs=1)
    updater = Updater(policy, settings, 10, 0, source.generator.processes, 12)
    algorithm = PPO(kl_coef=0.0)
    updater.update(algorithm, rollout, algorithm.assign_credit(rollout), 1)
    moved = {n: float((x - before[n]).abs().max()) for n, x in policy.trainable_state().items()}
    assert max(moved.pop("value_head.weight"), moved.pop("value_head.bias")) < 1e-20
    assert max(moved.values()) > 1e-5


@catches("rows out of the loss alone, out of their group too")
def test_truncated_responses_may_leave_the_loss_alone():
    """DAPO's overlong filtering: the score is there, for the group's mean and the log."""
    algorithm = GRPO(group_size=4)
    collected, plain = (
        source_of(algorithm, truncated=kind).collect(1) for kind in ("mask_loss", "score")
    )
    rollout = collected.rollout
    cut_B = truncated_rows(rollout)
    assert rollout.scorable_B.all()
    assert torch.equal(rollout.learned_B, ~cut_B)
    credit = algorithm.assign_credit(rollout)
    assert torch.equal(credit.advantages_BT, algorithm.assign_credit(plain.rollout).advantages_BT)
    batch = Minibatch.of(rollout, credit)
    assert not batch.mask_BT[cut_B].any()
    assert torch.equal(batch.mask_BT[~cut_B], rollout.mask_BT[~cut_B])
    assert collected.metrics == plain.metrics | {
        name: value for name, value in collected.metrics.items() if name.startswith("time/")
    }


@catches("a resumed run's last evaluation tells rewards that nothing is done yet")
def test_a_resumed_source_tells_rewards_how_many_iterations_are_done():
    source, resumed, older = (source_of(PPO()) for _ in range(3))
    source.collect(3)
    resumed.load_state(source.state())
    older.load_state({name: x for name, x in source.state().items() if name != "begun"})
    done = []
    for each in (source, resumed, older):
        each.evaluate()
        done.append(each.evaluator.scorer.done)
    assert done == [3, 3, 1]
