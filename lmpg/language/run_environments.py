"""The environments of a run, ready to talk to, and the prompts that their episodes begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lmpg.language.data.examples import Split
from lmpg.language.data.prompts import Prompt
from lmpg.language.data.settings import DataSettings
from lmpg.language.environments.opening import opened
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.rollouts.several_turns import Environments
from lmpg.language.settings import LanguageSettings
from lmpg.runtime.seeding import generator

BEGUN = 8
"""Episodes that are begun to see what prompts are like, where no data give them."""


def environments_for(
    asked: EnvironmentSettings,
    data: DataSettings,
    tokenizer: Any,
    eos_token_ids: tuple[int, ...],
    given: Mapping[str, Callable] = MappingProxyType({}),
    *,
    observes_end: bool = False,
) -> Environments | None:
    """The environments, their workers started; None where completions are one turn. given: objects
    by their names in the settings."""
    if not asked.wanted:
        return None
    found = opened(asked, tokenizer, data, eos_token_ids, given)
    limits = asked.max_turns, asked.max_tokens
    return Environments(found.pool, found.continuation, *limits, observes_end)


def longest_response(settings: LanguageSettings) -> int:
    """Tokens that the policy writes at most in a row."""
    one, asked = settings.sampling.max_new_tokens, settings.environment
    if not asked.wanted:
        return one
    return min(asked.max_turns * one, asked.max_tokens or asked.max_turns * one)


def prompts_of(environments: Environments, seed: int) -> Split[Prompt]:
    """Prompts where no data give any: what some episodes begin with. In a rollout each of them
    stands for one that begins from a seed of its own."""
    prompts = [Prompt("", [])] * (2 * BEGUN)
    seeds = [generator(seed, "first", i).initial_seed() % 2**31 for i in range(len(prompts))]
    found = environments.first_prompts(prompts, seeds)
    return Split(found[:BEGUN], found[BEGUN:])
