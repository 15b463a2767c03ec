"""Environments of text for the tests: episodes that follow from the seed and what is said.

A worker process imports this file for each run: nothing here loads torch.
"""

from __future__ import annotations

from typing import Any


class Asks:
    """Ends after one to three turns, as the seed says. A turn's reward counts its letters a."""

    def reset(self, *, seed: int, options: dict[str, Any]) -> tuple[Any, dict]:
        self.taken, self.turns = 0, 1 + seed % 3
        return options.get("prompt") or f"ask {seed % 7}: ", {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict]:
        self.taken += 1
        reward = action.count("a") - len(action) / 20
        return f" ({self.taken}{action[:2]}) ", reward, self.taken == self.turns, False, {}


class Once(Asks):
    """Ends with the first turn, without a reward of its own."""

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict]:
        return "", 0.0, True, False, {}


def environments_of(tokenizer: Any, ends: tuple[int, ...], kind: type, **asked: Any) -> Any:
    """`Environments` of a class, in this process."""
    from contextlib import ExitStack

    from lmpg.language.data.settings import DataSettings
    from lmpg.language.environments.settings import EnvironmentSettings
    from lmpg.language.run_environments import environments_for, pool_for

    observes_end, data = asked.pop("observes_end", False), DataSettings(**asked.pop("data", {}))
    settings = EnvironmentSettings(path="memory:kind", **asked)
    parts = settings, data, tokenizer
    pool = pool_for(ExitStack(), *parts, {"memory:kind": kind})
    found = environments_for(pool, *parts, ends, observes_end=observes_end)
    assert found is not None
    return found
