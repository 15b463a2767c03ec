"""Everything that the environment of a run takes, from its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lmpg.language.data.settings import DataSettings
from lmpg.language.environments.continuation import Continuation
from lmpg.language.environments.plan import Calls
from lmpg.language.environments.pool import EnvironmentPool
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.environments.tool_calls import format_of
from lmpg.settings.said_once import say_once


def pool_of(
    settings: EnvironmentSettings,
    tokenizer: Any,
    data: DataSettings,
    given: Mapping[str, Callable] = MappingProxyType({}),
) -> EnvironmentPool:
    """The environments that settings ask for, imported and made once; UserError where they are no
    good.

    given: those given as objects of Python, by their names in the settings.
    """
    is_chat = data.chat or data.system_prompt is not None
    return EnvironmentPool(settings, given, Calls(call_format_of(settings, tokenizer), is_chat))


def continuation_of(
    settings: EnvironmentSettings, tokenizer: Any, data: DataSettings, eos_token_ids: Sequence[int]
) -> Continuation:
    """What the policy reads of these environments."""
    call_format = call_format_of(settings, tokenizer)
    objects = call_format if settings.tools and call_format == "mistral" else None
    return Continuation(tokenizer, data, eos_token_ids, settings.rewritten, objects)


def call_format_of(settings: EnvironmentSettings, tokenizer: Any) -> str:
    """The format of calls of tools: the settings', or that of the chat template."""
    if settings.tool_format != "auto":
        return settings.tool_format
    if not settings.tools or not getattr(tokenizer, "chat_template", None):
        return "fenced"
    template = str(tokenizer.get_chat_template(None, [{}]))
    found = format_of(template)
    if found is None:
        say_once(
            "environment: the chat template writes no calls of tools in a format that is known, so "
            "the prompt says how to call them (environment.tool_format = fenced)"
        )
    return found or "fenced"
