"""The environments of a run, ready to talk to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

from lmpg.language.data.settings import DataSettings
from lmpg.language.environments.opening import continuation_of, pool_of
from lmpg.language.environments.pool import EnvironmentPool
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.rollouts.several_turns import Environments
from lmpg.language.settings import LanguageSettings


def pool_for(
    opened: ExitStack,
    asked: EnvironmentSettings,
    data: DataSettings,
    tokenizer: Any,
    given: Mapping[str, Callable] = MappingProxyType({}),
) -> EnvironmentPool | None:
    """The environments, imported before any model is loaded, and tried where they need no data;
    None where completions are one turn. `opened` closes them. given: objects by their names in the
    settings."""
    if not asked.wanted:
        return None
    pool = opened.enter_context(pool_of(asked, tokenizer, data, given))
    if data.path is None and not asked.is_built_in:
        pool.try_episode({})
    return pool


def environments_for(
    pool: EnvironmentPool | None,
    asked: EnvironmentSettings,
    data: DataSettings,
    tokenizer: Any,
    eos_token_ids: tuple[int, ...],
    *,
    observes_end: bool = False,
) -> Environments | None:
    """Whom the policy talks to; None where there is no pool."""
    if pool is None:
        return None
    continuation = continuation_of(asked, tokenizer, data, eos_token_ids)
    return Environments(pool, continuation, asked.max_turns, asked.max_tokens, observes_end)


def longest_response(settings: LanguageSettings) -> int:
    """Tokens that the policy writes at most in a row."""
    one, asked = settings.sampling.max_new_tokens, settings.environment
    if not asked.wanted:
        return one
    return min(asked.max_turns * one, asked.max_tokens or asked.max_turns * one)
