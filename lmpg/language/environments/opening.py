"""Everything that the environment of a run takes, from its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lmpg.language.data.settings import DataSettings
from lmpg.language.environments.continuation import Continuation
from lmpg.language.environments.plan import Calls
from lmpg.language.environments.pool import EnvironmentPool
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.environments.tool_calls import format_of
from lmpg.settings.said_once import say_once


@dataclass(frozen=True)
class Opened:
    """The environments of a rollout's rows, and what the policy reads of them."""

    pool: EnvironmentPool
    continuation: Continuation

    def close(self) -> None:
        """Ends the environments and their processes."""
        self.pool.close()


def opened(
    settings: EnvironmentSettings,
    tokenizer: Any,
    data: DataSettings,
    eos_token_ids: Sequence[int],
    given: Mapping[str, Callable] = MappingProxyType({}),
) -> Opened:
    """The environments that settings ask for, imported and tried; UserError where they are no good.

    given: those given as objects of Python, by their names in the settings.
    """
    call_format = call_format_of(settings, tokenizer)
    objects = call_format if settings.tools and call_format == "mistral" else None
    continuation = Continuation(tokenizer, data, eos_token_ids, settings.rewritten, objects)
    calls = Calls(call_format, data.chat or data.system_prompt is not None)
    return Opened(EnvironmentPool(settings, given, calls), continuation)


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
