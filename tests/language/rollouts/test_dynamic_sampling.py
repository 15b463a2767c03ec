"""Dynamic sampling: groups without spread make room for others, and nothing else changes."""

from __future__ import annotations

import random
from types import SimpleNamespace

import torch

from lmpg.algorithms.grpo import GRPO
from lmpg.functional.advantages import group_centred
from lmpg.language.data.order import other_prompts, prompts_for_step
from lmpg.language.rewards.scorer import Scores
from lmpg.language.rollouts.dynamic_sampling import DynamicSampling
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.scoring import GroupSampler, Sampled, ScoredGroups
from lmpg.runtime.machine import Stopwatch
from tests.language.rollouts.test_collect import FakeScorer, source_of
from tests.support.planted import catches


class Scripted:
    """A group sampler whose groups have the given spreads, round by round; a score is the name of
    its group, (round, group). `asked` is how many groups were asked for."""

    prompts, generator = range(50), SimpleNamespace(seed=0)

    def __init__(self, *rounds):
        self.rounds, self.num_groups = rounds, len(rounds[0])
        self.asked, self.used = [], []

    def prompts_of(self, iteration):
        return list(range(self.num_groups))

    def sample(self, iteration, processing, watch):
        return self.sample_round(("sample", 1), self.prompts_of(1), processing, watch)

    def sample_round(self, key, prompts, processing, watch):
        number = len(self.asked)
        assert key == (("sample", 1, "refill", number) if number else ("sample", 1))
        self.asked.append(len(prompts))
        self.used += prompts
        names = [(number, group) for group in range(len(prompts))]
        completions = SimpleNamespace(rows=lambda index: None)
        scores = Scores(names, {}, 0, [], [[]] * len(names))
        groups = [ScoredGroups(list(range(len(prompts))), 1, completions, scores)]
        assert len(self.rounds[number]) == len(prompts)
        return Sampled(groups, scores, 0, None, self.rounds[number])

    def stop_on_errors(self, iteration, rounds):
        assert len(rounds) == len(self.asked)


def filled(sampler, max_refills):
    """What dynamic sampling makes of it, and the group in each slot."""
    sampled = DynamicSampling(sampler, max_refills).sample(1, None, None)
    in_slot = {}
    for groups in sampled.groups:
        assert not in_slot.keys() & set(groups.slots)
        in_slot |= dict(zip(groups.slots, groups.scores.totals))
    return sampled, [in_slot[slot] for slot in range(sampler.num_groups)]


def test_groups_without_spread_are_replaced_in_order_until_all_have_one():
    first = [True, False, False, True, False]
    sampler = Scripted(first, [False, True, False], [True, True])
    sampled, in_slot = filled(sampler, 9)
    assert sampler.asked == [5, 3, 2]
    assert len(set(sampler.used)) == 10  # no prompt twice
    assert in_slot == [(0, 0), (1, 1), (2, 0), (0, 3), (2, 1)]
    assert sampled.metrics == {"sampling/refills": 2, "sampling/dropped_groups": 5}
    assert sampled.has_spread == first  # what is said of the policy as it comes
    assert len(sampled.scores.totals) == 10


def test_what_is_missing_at_the_bound_is_filled_with_the_groups_that_were_dropped():
    sampler = Scripted([False, False, True], [False, True])
    sampled, in_slot = filled(sampler, 1)
    assert sampler.asked == [3, 2]
    assert in_slot == [(1, 1), (0, 1), (0, 2)]
    assert sampled.metrics == {"sampling/refills": 1, "sampling/dropped_groups": 2}


def test_without_need_there_is_one_round_and_without_refills_no_dynamic_sampling():
    sampled, in_slot = filled(Scripted([True, True]), 3)
    assert in_slot == [(0, 0), (0, 1)]
    assert sampled.metrics == {"sampling/refills": 0, "sampling/dropped_groups": 0}
    assert isinstance(grouped(0).sampler, GroupSampler)
    assert isinstance(grouped(1).sampler, DynamicSampling)


def test_the_slots_of_a_rollout_are_always_filled_by_different_groups():
    dice = random.Random(3)

    class Random(Scripted):
        def sample_round(self, key, prompts, processing, watch):
            self.rounds = [*self.rounds, [dice.random() < 0.4 for _ in prompts]]
            return super().sample_round(key, prompts, processing, watch)

    for _ in range(200):
        sampler = Random([False] * 6)
        sampler.rounds = []
        _, in_slot = filled(sampler, 3)
        assert len(in_slot) == len(set(in_slot)) == 6


@catches("dynamic sampling repeats the step's own prompts")
def test_other_prompts_are_new_ones_as_long_as_there_are_any():
    used = prompts_for_step(10, 2, 4, seed=1)
    found = other_prompts(10, 2, used, 6, seed=1)
    assert sorted(used + found) == list(range(10))
    assert other_prompts(10, 2, used, 3, seed=1) == found[:3]
    assert sorted(other_prompts(10, 2, used, 10, seed=1)[6:]) == sorted(used)
    assert len(other_prompts(2, 0, [0, 1], 5, seed=1)) == 5
    assert other_prompts(10, 3, used, 6, seed=1) != found


class Coarse(FakeScorer):
    """Whether a completion is long; the same for all responses to most prompts."""

    def score(self, prompts, completions, completion_ids, columns):
        found = super().score(prompts, completions, completion_ids, columns)
        for i, (prompt, total) in enumerate(zip(prompts, found.totals)):
            if total is not None:
                found.totals[i] = float(total > 10) if prompt in ("def", "p") else 0.0
        return found


def grouped(max_refills, scorer=None):
    return source_of(GRPO(group_size=4, kl_coef=0.1), scorer or Coarse(), max_refills=max_refills)


def spreads(rollout):
    shape = (-1, 4)
    centred = group_centred(rollout.scores_B.view(shape), rollout.scorable_B.view(shape))
    return (centred != 0).any(1).tolist()


def test_a_refilled_rollout_has_the_same_shape_and_more_groups_with_spread():
    plain, refilled = grouped(0).collect(1), grouped(5).collect(1)
    assert len(plain.rollout.mask_BT) == len(refilled.rollout.mask_BT) == 16
    before, after = spreads(plain.rollout), spreads(refilled.rollout)
    assert sum(after) > sum(before)
    name = "frac_reward_zero_std"
    assert refilled.metrics[name] == plain.metrics[name] == before.count(False) / 4
    assert refilled.metrics["sampling/refills"] == 5
    assert "sampling/refills" not in plain.metrics
    lengths = refilled.rollout.inputs["response_lengths"]
    assert torch.equal(refilled.rollout.mask_BT.sum(1), lengths)
    policy = grouped(0).generator.policy
    new = policy.evaluate(refilled.rollout.inputs).logprobs_BT.detach()
    torch.testing.assert_close(refilled.rollout.logprobs_BT, new, atol=1e-5, rtol=0)
    torch.testing.assert_close(refilled.rollout.ref_logprobs_BT, new, atol=1e-5, rtol=0)


@catches("groups sampled later at the rollout's end instead of in the slots of the dropped ones")
def test_kept_groups_stay_in_their_places_beside_new_ones():
    plain, refilled = grouped(0).collect(8).rollout, grouped(5).collect(8).rollout
    assert spreads(plain) == [False, True, False, False]
    assert spreads(refilled) == [True, True, False, False]
    for place in (1, 2, 3):  # 0 is new; what is missing at the bound is as it was
        rows = slice(4 * place, 4 * place + 4)
        lengths = plain.inputs["response_lengths"][rows]
        assert torch.equal(refilled.inputs["response_lengths"][rows], lengths)
        width = int(lengths.max())
        ids = plain.inputs["response_ids"][rows, :width]
        assert torch.equal(refilled.inputs["response_ids"][rows, :width], ids)


@catches("every round of dynamic sampling draws the same random numbers")
def test_every_round_has_random_numbers_of_its_own(monkeypatch):
    keys, draw = [], Generator.draw
    monkeypatch.setattr(
        Generator,
        "draw",
        lambda self, key, *rest: keys.append(key) or draw(self, key, *rest),
    )
    source = grouped(3)
    source.collect(3)
    source.collect(9)
    assert len(set(keys)) == len(keys) == 8


@catches("a response without score gives its group a spread")
def test_responses_without_a_score_give_a_group_no_spread_and_count_as_errors_in_every_round():
    class Broken(Coarse):
        calls = 0

        def score(self, prompts, completions, completion_ids, columns):
            found = super().score(prompts, completions, completion_ids, columns)
            Broken.calls += 1
            found.totals[:] = [float(i) if i % 4 == 0 else None for i in range(len(prompts))]
            return found

    collected = grouped(2, Broken()).collect(1)
    assert Broken.calls == 3
    assert collected.metrics["frac_reward_zero_std"] == 1
    assert spreads(collected.rollout) == [False] * 4


def test_a_rank_without_a_prompt_in_a_round_samples_nothing():
    source = grouped(5)
    processes = source.generator.processes
    processes.rank, processes.count = 0, 2  # a single group is the last rank's
    scores = Scores([1.0] * 4, {}, 0, [], [[]] * 4)
    theirs = iter([[None], [(scores, 0, scores.totals)], [False]])  # what the other tells, in order
    processes.gather_list = lambda items: items + next(theirs)
    key, sampler = ("sample", 1, "refill", 1), source.sampler.sampler
    sampled = sampler.sample_round(key, [3], source.processing, Stopwatch())
    assert (sampled.groups, sampled.scores, sampled.has_spread) == ([], scores, [False])
