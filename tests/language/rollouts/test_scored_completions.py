"""Evaluation by several completions per prompt: pass@k, greedy, and the reward as it was."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lmpg.algorithms.ppo import PPO
from lmpg.language.rewards.scorer import Scores
from lmpg.language.rollouts.scored_completions import powers_up_to, scored_completions
from tests.language.rollouts.test_collect import PROMPTS, FakeScorer, source_of
from tests.support.planted import catches


class HasVowel(FakeScorer):
    """1 where the completion has an a, e or i; none where it begins with a digit."""

    def submit(self, prompts, completions, completion_ids, columns):
        totals = [
            None if c[:1].isdigit() else float(bool(set(c) & set("aei"))) for c in completions
        ]
        scores = Scores(totals, {"vowel": totals}, totals.count(None), ["no"], [[]] * len(totals))
        return SimpleNamespace(result=lambda: scores)


@pytest.fixture(scope="module")
def evaluator():
    return replace(source_of(PPO(), HasVowel(), new_tokens=3).evaluator, size=4, prompts=prompts())


def prompts():
    return list(source_of(PPO()).sampler.prompts)[:4]


def slow_pass_at(scores, k):
    """The share of all choices of k completions that hold one that passes, prompt by prompt."""
    shares = []
    for row in scores:
        known = [x for x in row if x is not None]
        chosen = list(itertools.combinations(known, k))
        shares += [sum(max(c) >= 1 for c in chosen) / len(chosen)] if chosen else []
    return sum(shares) / len(shares)


@catches("completions of one prompt counted for another", "a missing score counted as a failure")
def test_pass_at_k_is_that_of_counting_choices(evaluator):
    found = replace(evaluator, samples=6).evaluate()
    drawn = scored_completions(evaluator.generator, prompts(), 6, 5, evaluator.scorer)
    scores = [drawn.scores[i : i + 6] for i in range(0, 24, 6)]
    assert None in drawn.scores
    assert len({tuple(row) for row in scores}) > 1
    assert [name for name in found if name.startswith("pass")] == [
        *("pass_at_1", "pass_at_2", "pass_at_4", "pass_at_6")
    ]
    for k in (1, 2, 4, 6):
        assert found[f"pass_at_{k}"] == pytest.approx(slow_pass_at(scores, k), abs=1e-12)
    strict = replace(evaluator, samples=6, pass_score=1.5).evaluate()
    assert strict["pass_at_6"] == 0
    assert strict["reward"] == found["reward"]


def test_how_many_are_sampled_at_once_changes_nothing(evaluator):
    found = [
        scored_completions(evaluator.generator, prompts(), 3, rows, evaluator.scorer).texts
        for rows in (1, 6, 100)
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 12


@catches("greedy completions drawn at random")
def test_greedy_is_the_likeliest_completion_and_is_only_there_where_asked_for(evaluator):
    asked = replace(evaluator, greedy=True).evaluate()
    likeliest = scored_completions(
        evaluator.generator, prompts(), 1, 5, evaluator.scorer, greedy=True
    )
    known = [x for x in likeliest.scores if x is not None]
    assert asked["greedy_reward"] == pytest.approx(sum(known) / len(known))
    ids = [prompt.ids for prompt in prompts()]
    plain = evaluator.generator.sampler.sample(ids, 1, None).inputs["response_ids"]
    assert likeliest.ids[0] == plain[0, : len(likeliest.ids[0])].tolist()
    without = evaluator.evaluate()
    assert without == {k: v for k, v in asked.items() if k != "greedy_reward"}


def test_one_completion_each_is_what_it_always_was(evaluator):
    found = evaluator.evaluate()
    uniforms = evaluator.generator.uniforms(("evaluate",), 4, 1)
    texts = evaluator.generator.generate(prompts(), 1, uniforms).texts
    assert found["distinct"] == len(set(texts)) / 4
    assert not any(name.startswith("pass") for name in found)


class Logs(FakeScorer):
    """The share that has an a, e or i, logged, and two rewards."""

    def submit(self, prompts, completions, completion_ids, columns):
        totals = [float(len(c)) for c in completions]
        vowels = [float(bool(set(c) & set("aei"))) for c in completions]
        by_reward = {"long": totals, "vowel": vowels}
        logged = {"vowels": [sum(vowels) / len(vowels)]}
        scores = Scores(totals, by_reward, 0, [], [[]] * len(totals), logged=logged)
        return SimpleNamespace(result=lambda: scores)


@catches("means of what is logged that depend on how many completions are scored at once")
def test_what_functions_log_and_the_parts_of_the_reward_are_held_out_figures_too(evaluator):
    found = [replace(evaluator, scorer=Logs(), samples=3, rows=n).evaluate() for n in (3, 9, 12)]
    assert 0 < found[0]["logged/vowels"] < 1
    for metrics in found:
        assert metrics["logged/vowels"] == pytest.approx(found[0]["logged/vowels"], abs=1e-12)
        assert metrics["logged/vowels"] == pytest.approx(metrics["rewards/vowel/mean"])
        assert metrics["rewards/long/mean"] == pytest.approx(metrics["reward"])


def test_the_ks_that_are_shown():
    assert [powers_up_to(n) for n in (1, 2, 3, 8, 10)] == [
        *([1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 10])
    ]


def test_numbers_of_completions_stand_by_prompt(evaluator):
    drawn = scored_completions(evaluator.generator, prompts(), 3, 100, evaluator.scorer)
    assert [p.prompt for p in drawn.prompts] == [p for p in PROMPTS[:4] for _ in range(3)]
    lengths = drawn.per_prompt([len(x) for x in drawn.ids])
    assert lengths.shape == (4, 3)
    assert torch.equal(lengths.flatten(), torch.tensor([len(x) for x in drawn.ids]).double())
