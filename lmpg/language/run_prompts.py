"""The prompts of a run: the data's, a world's, or those that environments begin with."""

from __future__ import annotations

from typing import Any

from lmpg.language.data.examples import Parts, Split, data_rows
from lmpg.language.data.prompts import (
    Prompt,
    columns_for_rewards,
    load_prompts,
    prompts_from_rows,
)
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.rewards.scorer import Functions, check_columns
from lmpg.language.rollouts.several_turns import Environments
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.world import World
from lmpg.runtime.seeding import generator

BEGUN = 8
"""Episodes that are begun to see what prompts are like, where no data give them, to train on and
held out."""
SEEDED = "prompts: no data are given, so every episode begins from a seed of its own"
"""In place of how many prompts there are."""


def prompts_for(
    settings: LanguageSettings,
    policy: CausalLMPolicy,
    tokenizer: Any,
    world: World | None,
    environments: Environments | None = None,
    parts: Parts = (),
    tell: bool = False,
) -> Split[Prompt]:
    """The user's prompts or the world's, none so long that the context leaves no response; without
    either, those that environments begin with. parts: the user's rows, where they were read before.
    tell: whether to say how many prompts there are."""
    room = policy.context_length - settings.sampling.max_new_tokens
    found: Split[Prompt]
    line = None
    if world is not None:
        train = prompts_from_rows(world.train_rows, tokenizer, room)
        found = Split(train, prompts_from_rows(world.held_out_rows, tokenizer, room))
    elif environments is not None and settings.data.path is None:
        found, line = seeded_prompts(environments, settings.run.seed), SEEDED
    else:
        may_lack = settings.environment.has_episodes
        data = settings.data, tokenizer, room
        found = load_prompts(*data, may_lack_prompts=may_lack, parts=parts)
    if environments is not None and settings.data.path and not settings.environment.is_built_in:
        environments.pool.try_episode(found.train[0].columns)
    if tell:
        print(line or found.line() + _again(len(found.held_out), settings), flush=True)
    return found


def rows_for(settings: LanguageSettings, world: World | None, functions: Functions) -> Parts:
    """The rows of the user's data, read before any model is loaded; UserError where they lack a
    column that the settings or reward functions name."""
    if world is not None or settings.data.path is None:
        return ()
    parts = data_rows(settings.data)
    may_lack = settings.environment.has_episodes
    columns = columns_for_rewards(settings.data, parts, may_lack)
    check_columns(functions, columns, settings.rewards)
    return parts


def _again(held_out: int, settings: LanguageSettings) -> str:
    """Where evaluations ask prompts more than once: that they do, for the log."""
    size = settings.evaluation.size
    if size <= held_out:
        return ""
    return (
        f"; each held-out one is asked up to {-(-size // held_out)} times in an evaluation "
        f"(evaluation.size = {size})"
    )


def seeded_prompts(environments: Environments, seed: int) -> Split[Prompt]:
    """Prompts where no data give any: those that some episodes begin with. In a rollout each of
    them stands for one that begins from a seed of its own."""
    nothing = [Prompt("", [])] * BEGUN
    return begun(Split(nothing, nothing), environments, seed)


def begun(prompts: Split[Prompt], environments: Environments | None, seed: int) -> Split[Prompt]:
    """The prompts; where only environments know what they are, some of each part as they begin with
    a seed, to see what they are like."""
    if environments is None or prompts.train[0].ids:
        return prompts
    few = [*prompts.train[:BEGUN], *prompts.held_out[:BEGUN]]
    seeds = [generator(seed, "first", i).initial_seed() % 2**31 for i in range(len(few))]
    found, count = environments.first_prompts(few, seeds), len(prompts.train[:BEGUN])
    return Split(found[:count], found[count:])
