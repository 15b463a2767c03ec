"""The source of rollouts for language models: what is recorded of sampled responses."""

from types import SimpleNamespace

import pytest
import torch

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.language.data.prompts import prompts_from_rows
from lmpg.language.models.critic import new_value_head
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.rewards.scorer import Scores
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.rollouts.collect import LanguageSource
from lmpg.language.rollouts.dynamic_sampling import DynamicSampling
from lmpg.language.rollouts.evaluation import Evaluator
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.preflight import require_sound, self_test
from lmpg.language.rollouts.score_processing import ScoreProcessing
from lmpg.language.rollouts.scoring import GroupSampler
from lmpg.language.sampling.sampler import Sampler
from lmpg.runtime.processes import Processes
from lmpg.settings.section import RunStopped, UserError
from lmpg.training.old_logprobs import OldLogprobs
from tests.support.planted import catches
from tests.support.tiny import CHARACTERS, CONTEXT, EOS, PAD, tiny_model, tiny_tokenizer

PROMPTS = ["a", "bc", "def", "ghij 1", "klmno 22", "p"]


class FakeScorer:
    """The length of each completion; None for those that start with a vowel or a digit."""

    def __init__(self, fails=""):
        self.fails = fails
        self.seen = None

    def submit(self, prompts, completions, completion_ids, columns):
        scores = self.score(prompts, completions, completion_ids, columns)
        return SimpleNamespace(result=lambda: scores)

    def score(self, prompts, completions, completion_ids, columns):
        self.seen = (prompts, completions, completion_ids, columns)
        totals = [None if c[:1] in self.fails else float(len(c)) for c in completions]
        return Scores(
            totals,
            {"length": totals},
            totals.count(None),
            ["length: it failed"],
            [[]] * len(totals),
        )


def source_of(algorithm, scorer=None, eval_metric=None, new_tokens=12, max_refills=0, **rewards):
    tokenizer = tiny_tokenizer()
    policy = CausalLMPolicy(
        tiny_model(),
        new_value_head(32),
        temperature=1.0,
        eos_token_ids=(EOS,),
        pad_token_id=PAD,
        context_length=CONTEXT,
    )
    rows = [{"prompt": text, "number": i} for i, text in enumerate(PROMPTS)]
    prompts = prompts_from_rows(rows, tokenizer, 20)
    scorer, reference = scorer or FakeScorer(), policy.reference()
    sampler = Sampler(policy, new_tokens)
    generator = Generator(
        policy, sampler, tokenizer, 0, Processes(), 5, old_logprobs=OldLogprobs("sampled")
    )
    groups = GroupSampler(generator, scorer, prompts, algorithm, 16 // algorithm.group_size)
    return LanguageSource(
        generator=generator,
        sampler=DynamicSampling(groups, max_refills) if max_refills else groups,
        processing=ScoreProcessing(RewardSettings(**{"max_error_share": 1, **rewards}), new_tokens),
        reference=reference,
        algorithm=algorithm,
        evaluator=Evaluator(generator, prompts[:2], 8, 16, scorer, reference, eval_metric),
        samples_every=2,
    )


@catches("score on the first token instead of the last")
def test_the_score_sits_on_the_last_token_where_the_episode_ends():
    rollout = source_of(PPO()).collect(1).rollout
    lengths = rollout.inputs["response_lengths"]
    assert len(set(lengths.tolist())) > 1
    for b, length in enumerate(lengths.tolist()):
        assert rollout.rewards_BT[b].nonzero()[:, 0].tolist() in ([length - 1], [])
        assert rollout.ended_BT[b].nonzero()[:, 0].tolist() == [length - 1]
        assert rollout.mask_BT[b].sum() == length
    assert torch.equal(rollout.terminated_BT, rollout.ended_BT)
    assert torch.equal(rollout.next_values_BT[:, :-1], rollout.values_BT[:, 1:])


def test_rewards_get_what_was_sampled_with_each_prompts_columns():
    scorer = FakeScorer()
    rollout = source_of(GRPO(group_size=4), scorer).collect(1).rollout
    prompts, completions, ids, columns = scorer.seen
    assert [PROMPTS[n] for n in columns["number"]] == prompts
    assert prompts == [p for p in prompts[::4] for _ in range(4)]
    assert [len(x) for x in ids] == rollout.inputs["response_lengths"].tolist()
    assert rollout.scores_B.tolist() == [len(c) for c in completions]


@catches("a failed response scored 0 instead of left out")
def test_responses_without_a_score_are_marked_and_counted():
    collected = source_of(PPO(), FakeScorer(fails="aeiou0123456789")).collect(1)
    failed = (~collected.rollout.scorable_B).sum().item()
    assert 0 < failed < 16
    assert collected.metrics["reward_errors"] == failed
    assert (collected.rollout.scores_B[~collected.rollout.scorable_B] == 0).all()


def test_too_many_failures_stop_the_run_with_what_the_reward_said():
    source = source_of(PPO(), FakeScorer(fails="aeiou0123456789"), max_error_share=0.01)
    with pytest.raises(RunStopped, match=r"max_error_share = 0.01(.|\n)*it failed"):
        source.collect(1)


@catches("values read after each token instead of before")
def test_the_first_rollout_has_no_kl_and_its_old_logprobs_are_the_policys():
    source = source_of(PPO())
    collected = source.collect(1)
    rollout = collected.rollout
    new = source.generator.policy.evaluate(rollout.inputs)
    torch.testing.assert_close(rollout.logprobs_BT, new.logprobs_BT.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.values_BT, new.values_BT.detach(), atol=1e-5, rtol=0)
    assert collected.metrics["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_a_step_is_sampled_alike_whenever_it_comes_and_steps_differ():
    source = source_of(PPO())
    first, second, again = (source.collect(step).rollout for step in (1, 2, 1))
    assert torch.equal(first.inputs["response_ids"], again.inputs["response_ids"])
    assert first.inputs["response_ids"].shape != second.inputs[
        "response_ids"
    ].shape or not torch.equal(first.inputs["response_ids"], second.inputs["response_ids"])


def test_samples_are_shown_at_the_first_step_and_every_so_often():
    source = source_of(PPO())
    shown = [len(source.collect(step).samples) for step in (1, 2, 3, 4)]
    assert shown[0] > 0
    assert [n > 0 for n in shown] == [True, True, False, True]


def test_evaluation_is_the_same_each_time_and_adds_the_metrics_that_training_never_sees():
    def share(prompts, completions):
        return {"share": len(completions) / len(prompts)}

    source = source_of(PPO(), eval_metric=share)
    found = source.evaluate()
    assert found == source.evaluate()
    assert found["share"] == 1
    assert found["kl"] == pytest.approx(0, abs=1e-5)
    assert 0 < found["distinct"] <= 1


def test_the_self_test_passes_on_a_sound_model_and_names_what_is_wrong_otherwise():
    source = source_of(PPO())
    ids = [prompt.ids for prompt in source.sampler.prompts]
    sound = self_test(source.generator, source.reference, ids)
    assert sound.problems() == []
    assert "ratio 1.000000, KL to reference 0.000000" in sound.line()
    assert "value head 32→1" in sound.line()
    other = source_of(PPO()).generator
    other.policy.model.lm_head.weight.data *= 1.1
    broken = self_test(other, source.reference, ids)
    with pytest.raises(ValueError, match="KL to the reference is"):
        require_sound(broken)


def test_an_evaluation_that_cannot_be_scored_stops_the_run_before_it_begins():
    with pytest.raises(UserError, match=r"before training: 8 of 8 held-out responses"):
        source_of(PPO(), FakeScorer(fails=CHARACTERS), max_error_share=0.5).evaluate()
    tolerant = source_of(PPO(), FakeScorer(fails=CHARACTERS))
    assert tolerant.evaluate()["reward_errors"] == 8
    begun = source_of(PPO(), max_error_share=0.5)
    begun.collect(1)
    assert "reward_errors" not in begun.evaluate()
    begun.evaluator.scorer.fails = CHARACTERS
    assert begun.evaluate()["reward_errors"] == 8  # later on the rollouts decide


def test_a_step_without_any_score_is_told_of_once(caplog):
    source = source_of(GRPO(group_size=4), FakeScorer(CHARACTERS))
    source.collect(1)
    source.collect(2)
    (said,) = [r.getMessage() for r in caplog.records if "nothing can be learned" in r.getMessage()]
    assert "no response counts" in said
