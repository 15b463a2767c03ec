"""Rollouts of several turns: what the mask holds, whom rewards belong to, and how rows end."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields, replace

import pytest
import torch

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.language.data.prompts import Prompt, prompts_from_rows
from lmpg.language.models.critic import new_value_head
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.rewards.scorer import Scorer, started
from lmpg.language.rewards.settings import ScoringSettings
from lmpg.language.rollouts.generation import Generator, stop_search
from lmpg.language.rollouts.scored_completions import scored_completions
from lmpg.language.rollouts.scoring import with_rewards_of_turns
from lmpg.language.sampling.sampler import Sampler
from lmpg.runtime.processes import Processes
from lmpg.runtime.seeding import generator as seeded
from tests.language.rollouts.test_collect import FakeScorer, source_of
from tests.support.asking import Asks, Once, environments_of
from tests.support.planted import catches
from tests.support.templates import FAMILIES, family_tokenizer
from tests.support.tiny import CONTEXT, EOS, PAD, tiny_model, tiny_tokenizer

PROMPTS = ["a", "bc", "def", "ghij 1"]
KEY = ("a test",)


def talking(kind=Asks, tokenizer=None, size=1, stop=(), context=CONTEXT, steps=6, **asked):
    """Completions of the prompts by a tiny policy with environments of a kind: (completions,
    generator)."""
    tokenizer = tokenizer or tiny_tokenizer()
    ends = (tokenizer.eos_token_id,)
    policy = CausalLMPolicy(
        tiny_model(vocab_size=len(tokenizer), max_position_embeddings=context),
        new_value_head(32),
        temperature=1.0,
        eos_token_ids=ends,
        pad_token_id=PAD,
        context_length=context,
    )
    stops = stop_search(stop, tokenizer, policy)
    environments = environments_of(tokenizer, ends, kind, **asked)
    parts = policy, Sampler(policy, steps, stops=stops), tokenizer, 0, Processes(), 5
    generator = Generator(*parts, environments=environments)
    prompts = list(prompts_from_rows([{"prompt": x} for x in PROMPTS], tokenizer, 20))
    draw = generator.draw(KEY, len(prompts), size)
    return generator.completed(prompts, draw), generator


def written(samples, b):
    """The tokens that the mask holds, of each turn."""
    turns = samples.inputs["response_turns"][b]
    ids = samples.inputs["response_ids"][b]
    return [ids[turns == n].tolist() for n in range(1, int(turns.max()) + 1)]


class Chats(Asks):
    """The same as chat messages."""

    def reset(self, *, seed, options):
        super().reset(seed=seed, options=options)
        return [{"role": "user", "content": f"ask {seed % 5}"}], {}


def _said(role, content):
    return {"role": role, "content": content}


@catches("observations in the mask", "the template's end of a turn written behind a sampled EOS")
@pytest.mark.parametrize("family", FAMILIES)
def test_in_chats_of_five_families_the_mask_holds_the_policys_tokens_and_no_others(family):
    tokenizer = family_tokenizer(family)
    made, generator = talking(Chats, tokenizer, size=3, context=128)
    decode, samples = tokenizer.decode, made.samples
    assert {len(talk.turns) for talk in made.talks} == {1, 2, 3}
    for b, talk in enumerate(made.talks):
        of_turns, ids = written(samples, b), made.ids[b]
        for turn, tokens in zip(talk.turns, of_turns):
            assert tokens == ids[turn.start : turn.end]
            said = tokens[:-1] if tokens[-1] == tokenizer.eos_token_id else tokens
            assert decode(said) == turn.text
        for one, other in zip(talk.turns, talk.turns[1:]):
            chat = [*made.prompts[b].prompt, _said("assistant", "@"), _said("user", other.before)]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            behind = text.rpartition("@")[2]
            if ids[one.end - 1] == tokenizer.eos_token_id:  # the policy has ended its turn itself
                behind = behind.removeprefix(tokenizer.eos_token)
            assert decode(ids[one.end : other.start]) == behind
    with torch.no_grad():
        fresh = generator.policy.evaluate(samples.inputs)
    torch.testing.assert_close(samples.logprobs_BT, fresh.logprobs_BT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(samples.values_BT, fresh.values_BT, rtol=1e-5, atol=1e-5)
    assert not fresh.logprobs_BT[~samples.mask_BT].any()  # none is computed of observations


@catches("a conversation's first turn drawn from other numbers than a response")
@pytest.mark.parametrize("algorithm", [PPO(kl_coef=0.1), GRPO(group_size=4, kl_coef=0.1)])
def test_a_conversation_of_one_turn_is_bit_for_bit_a_response_without_environments(algorithm):
    plain, other = source_of(algorithm), source_of(algorithm)
    tokenizer = plain.generator.tokenizer
    environments = environments_of(tokenizer, (EOS,), Once)
    talks = replace(other.generator, environments=environments)
    other.generator = talks
    other.sampler = replace(other.sampler, generator=talks)
    expected, found = plain.collect(1), other.collect(1)
    for field in fields(expected.rollout):
        one, two = (getattr(x.rollout, field.name) for x in (expected, found))
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, two), field.name
    for name, one in expected.rollout.inputs.items():
        assert torch.equal(one, found.rollout.inputs[name])
    same = {k for k in expected.metrics if not k.startswith("time/")}
    assert {k: found.metrics[k] for k in same} == {k: expected.metrics[k] for k in same}
    credit, others = (algorithm.assign_credit(x.rollout) for x in (expected, found))
    assert torch.equal(credit.advantages_BT, others.advantages_BT)


@catches("a turn's reward on the row's last token", "scores of reward functions lost")
def test_rewards_of_turns_lie_on_their_last_tokens_and_scores_on_the_rows():
    source = source_of(PPO())
    ends = environments_of(source.generator.tokenizer, (EOS,), Asks)
    source.generator = replace(source.generator, environments=ends)
    source.sampler = replace(source.sampler, generator=source.generator)
    rollout = source.collect(1).rollout
    prompts = [source.sampler.prompts[i] for i in source.sampler.prompts_of(1)]
    made = source.generator.completed(prompts, source.generator.draw(("sample", 1), 16, 1))
    expected_BT = torch.zeros(rollout.mask_BT.shape)
    for b, talk in enumerate(made.talks):
        for turn in talk.turns:
            expected_BT[b, turn.end - 1] += turn.reward
        expected_BT[b, talk.turns[-1].end - 1] += len(made.texts[b])  # FakeScorer's
    torch.testing.assert_close(rollout.rewards_BT, expected_BT)
    first = rollout.turns_BT[0][rollout.mask_BT[0]]
    assert first.tolist() == sorted(first.tolist())
    assert not rollout.rewards_BT[~rollout.mask_BT].any()
    assert not rollout.ended_BT[~rollout.mask_BT].any()
    assert rollout.ended_BT.sum(1).tolist() == [1] * 16


def test_all_samples_of_a_group_meet_the_same_episode_and_other_groups_others():
    made, generator = talking(size=3)
    states = [talk.turns[0].state for talk in made.talks]
    seeds = generator.draw(KEY, 4, 3).seeds()
    assert len(set(seeds)) == 4
    turns = [1 + seed % 3 for seed in seeds for _ in range(3)]
    assert [len(talk.turns) for talk in made.talks] == turns
    assert all(len(set(states[i : i + 3])) == 1 for i in (0, 3, 6, 9))
    assert generator.draw(KEY, 4, 3).part(1, 3).seeds() == seeds[1:3]


@catches("random numbers of a turn that go by the rows that are left")
def test_parts_of_a_batch_say_what_the_whole_says():
    whole, generator = talking(size=2)
    draw = generator.draw(KEY, 4, 2)
    prompts = [Prompt(x.prompt, x.ids, {"prompt": x.prompt}) for x in whole.prompts[::2]]
    parts = [generator.completed(prompts[i : i + 1], draw.part(i, i + 1)) for i in range(4)]
    assert [ids for part in parts for ids in part.ids] == whole.ids
    assert [talk for part in parts for talk in part.talks] == whole.talks
    drawn = torch.rand((8, 6), generator=seeded(0, *KEY))  # of a first turn as of a response
    assert torch.equal(draw.uniforms(), drawn)
    assert not torch.equal(draw.uniforms(1), drawn)


class Endless(Asks):
    def step(self, action):
        return "go on " * 5, 1.0, False, False, {}


def test_rows_end_at_the_last_turn_at_their_tokens_or_at_the_context_and_are_truncated():
    made, _ = talking(Endless, max_turns=2, context=512)
    assert {talk.end for talk in made.talks} == {"max_turns"}
    assert not any(made.finished)
    assert all(
        made.ids[b][-len(row[-1]) :] == row[-1]
        for b, row in enumerate(written(made.samples, b) for b in range(4))
    )
    limited, _ = talking(Endless, max_tokens=50, context=512)
    narrow, _ = talking(Endless, context=50)
    for found in (limited, narrow):
        assert {talk.end for talk in found.talks} == {"max_tokens"}
        rows = zip(found.prompts, found.ids)
        assert all(len(prompt.ids) + len(ids) <= 50 for prompt, ids in rows)
    assert limited.ids == narrow.ids


@catches("episodes that a limit ended counted as turns that were cut off")
def test_turns_that_were_cut_off_are_another_figure_than_episodes_that_were_truncated():
    source = source_of(PPO(kl_coef=0.0), new_tokens=6)
    talks = environments_of(source.generator.tokenizer, (EOS,), Endless, max_turns=2)
    source.generator = replace(source.generator, environments=talks)
    source.sampler = replace(source.sampler, generator=source.generator)
    collected = source.collect(1)
    ids, turns = (collected.rollout.inputs[f"response_{name}"] for name in ("ids", "turns"))
    ended = [int(ids[b][turns[b] == n][-1]) == EOS for b in range(len(ids)) for n in (1, 2)]
    names = ("completions/clipped_ratio", "environment/truncated")
    found = [collected.metrics[name] for name in names]
    assert found == pytest.approx([1 - sum(ended) / len(ended), 1.0])


@catches("a last observation that outgrows environment.max_tokens is read by the critic")
def test_a_last_observation_counts_among_the_tokens_of_its_row():
    made, _ = talking(Endless, max_tokens=50, context=512, observes_end=True)
    rows = zip(made.prompts, made.ids)
    assert all(len(prompt.ids) + len(ids) <= 50 for prompt, ids in rows)


def test_a_truncated_row_ends_with_its_last_observation_where_the_critic_reads_it():
    plain, _ = talking(Endless, max_turns=2, context=512)
    made, generator = talking(Endless, max_turns=2, context=512, observes_end=True)
    seen = generator.tokenizer.encode("go on " * 5)
    assert [ids + seen for ids in plain.ids] == made.ids
    longer = plain.samples.mask_BT.shape[1]
    assert torch.equal(made.samples.mask_BT[:, :longer], plain.samples.mask_BT)
    assert not made.samples.mask_BT[:, longer:].any()
    values_B = generator.values_after(made.samples)
    ids = torch.tensor([made.prompts[0].ids + made.ids[0]])
    hidden = generator.policy.trunk(input_ids=ids).last_hidden_state[0, -1]
    torch.testing.assert_close(values_B[0], generator.policy.values(hidden))


def test_a_stop_string_ends_a_turn_and_not_the_row():
    made, _ = talking(Endless, stop=("e", "s"), steps=30, max_turns=3, context=512)
    turns = [turn for talk in made.talks for turn in talk.turns]
    assert len(turns) == 12
    ended = [turn for turn in turns if turn.text.endswith(("e", "s"))]
    assert len(ended) > 6
    assert all(not set(turn.text[:-1]) & {"e", "s"} for turn in turns)


class Breaks(Asks):
    """Breaks in reset or in step, as the prompt says."""

    def reset(self, *, seed, options):
        self.name = options["prompt"]
        if self.name == "a":
            raise ValueError("no episode")
        return {"bc": "x" * 200}.get(self.name, "begin: "), {}

    def step(self, action):
        if self.name == "def":
            raise ValueError("no step")
        return "more", 1.0, True, False, {}


@catches("a row that its environment lost has a score")
def test_rows_that_are_lost_have_no_score_count_and_leave_the_others_alone():
    made, generator = talking(Breaks)
    errors = [talk.error for talk in made.talks]
    assert ["no episode" in errors[0], "tokens" in errors[1], "no step" in errors[2]] == [True] * 3
    assert errors[3] is None
    scores = FakeScorer().score([], made.texts, made.ids, {})
    found = with_rewards_of_turns(scores, made)
    assert found.totals[:3] == [None] * 3
    assert found.totals[3] == len(made.texts[3]) + 1.0
    assert found.errors == 3
    assert any("no episode" in text for text in found.messages)
    assert found.by_reward["environment"] == [None, None, None, 1.0]
    with torch.no_grad():
        fresh = generator.policy.evaluate(made.samples.inputs)
    assert torch.isfinite(fresh.logprobs_BT).all()


class NeverBegins(Asks):
    def reset(self, *, seed, options):
        raise ValueError("no episode")


def test_a_rollout_whose_rows_are_all_lost_is_a_rollout():
    made, generator = talking(NeverBegins)
    assert [talk.end for talk in made.talks] == ["error"] * 4
    assert not made.samples.mask_BT.any()
    with torch.no_grad():
        assert not generator.policy.evaluate(made.samples.inputs).logprobs_BT.any()


def test_evaluations_talk_too_and_reward_functions_see_the_whole_conversation():
    _, generator = talking(Chats, family_tokenizer("chatml"), context=128)
    seen: list = []

    def turns_of_the_assistant(completions):
        seen.extend(completions)
        return [float(sum(x["role"] == "assistant" for x in c)) for c in completions]

    settings = ScoringSettings(functions=("memory:f",))
    given = {"memory:f": turns_of_the_assistant}
    scorer = Scorer(settings, functions=started(settings, given, ExitStack()))
    prompts = [Prompt("", [5], {})] * 3
    found = scored_completions(generator, prompts, 2, 4, scorer)
    assert max(map(len, seen)) > 2
    assert all(x[0]["role"] == x[-1]["role"] == "assistant" for x in seen)
    assert {message["role"] for x in seen for message in x} == {"assistant", "user"}
    assert found.scores == pytest.approx([x.reward + len(x.turns) for x in found.talks])
    assert found.lengths != [len(ids) for ids in found.ids]
    assert scored_completions(generator, prompts, 2, 100, scorer).ids == found.ids
