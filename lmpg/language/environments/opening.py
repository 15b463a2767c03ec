"""Everything that the environment of a run takes, from its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lmpg.language.data.settings import DataSettings
from lmpg.language.environments.continuation import Continuation
from lmpg.language.environments.pool import EnvironmentPool
from lmpg.language.environments.settings import EnvironmentSettings


@dataclass(frozen=True)
class Environments:
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
) -> Environments:
    """The environments that settings ask for, imported and tried; UserError where they are no good.

    given: those given as objects of Python, by their names in the settings.
    """
    continuation = Continuation(tokenizer, data, eos_token_ids, settings.rewritten)
    return Environments(EnvironmentPool(settings, given), continuation)
