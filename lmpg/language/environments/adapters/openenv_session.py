"""Environments that an OpenEnv server runs, a session for each episode."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from lmpg.language.environments.adapters.background_loop import in_background

PATIENCE = 10.0  # seconds for a server to say that it is there
NOT_OBSERVED = ("reward", "done", "metadata")


class OpenEnvSession:
    """A session with the server at `url`, through OpenEnv's own client.

    action: the field of an action that a turn's text goes into; the server's schema says which
    there are. Other fields of actions are given by name. observation: the field of observations to
    read; without it their only text, or else all of them as JSON.
    """

    def __init__(
        self, url: str, action: str = "message", observation: str | None = None, **fields: Any
    ):
        try:
            from openenv.core import GenericEnvClient
        except ImportError as error:
            raise ImportError(
                f"OpenEnv is not installed: pip install 'lmpg[openenv]' ({error})"
            ) from None
        self._url, self._action, self._fields = url, action, fields
        self._observation = observation
        self._refuse_unknown_fields()
        self._client = GenericEnvClient(base_url=url)

    async def reset(self, *, seed: int, options: dict[str, Any]) -> Any:
        """The first observation of the session."""
        result = await in_background(lambda: self._client.reset(seed=seed))
        return self._read(result.observation), {}

    async def step(self, action: str) -> Any:
        """What the server replies to the turn."""
        sent = {**self._fields, self._action: action}
        result = await in_background(lambda: self._client.step(sent))
        reward = 0.0 if result.reward is None else result.reward
        return self._read(result.observation), reward, bool(result.done), False, {}

    async def close(self) -> None:
        """Ends the session."""
        await in_background(self._client.close)

    def _refuse_unknown_fields(self) -> None:
        """ValueError where the server is not there, or its actions have other fields."""
        place = f"{self._url.rstrip('/')}/schema"
        try:
            with urllib.request.urlopen(place, timeout=PATIENCE) as reply:
                schema = json.load(reply)["action"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"no OpenEnv server replies at {place}: {error}") from None
        known = [x for x in schema.get("properties", {}) if x != "metadata"]
        for name in (self._action, *self._fields):
            if known and name not in known:
                raise ValueError(
                    f"actions of the server at {self._url} have no {name!r}, but "
                    f"{', '.join(known)}; name the one that a turn goes into: action={known[0]!r}"
                )

    def _read(self, observation: Any) -> Any:
        """The text, or the messages, of an observation."""
        if not isinstance(observation, dict):
            return observation
        if self._observation is not None:
            if self._observation not in observation:
                raise ValueError(
                    f"observations have no {self._observation!r}, but {', '.join(observation)}"
                )
            return observation[self._observation]
        said = {k: x for k, x in observation.items() if k not in NOT_OBSERVED}
        texts = [x for x in said.values() if isinstance(x, str) and x]
        return texts[0] if len(texts) == 1 else json.dumps(said, ensure_ascii=False)
