"""Games of TextArena."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from lmpg.language.rewards.worker import load

PLAYER = 0


class TextArena:
    """A game by its id; what the game tells its player since the last turn is the observation.

    arguments: the game's. Its reward comes at the end. A game of several players needs `opponent`:
    a function from observation to action, as FILE.py:NAME, that takes the turns of all others.
    """

    def __init__(
        self, game: str, num_players: int = 1, opponent: str | None = None, **arguments: Any
    ):
        try:
            import textarena
        except ImportError as error:
            raise ImportError(
                f"TextArena is not installed: pip install 'lmpg[textarena]' ({error})"
            ) from None
        if num_players > 1 and opponent is None:
            raise ValueError(
                f"{game} with num_players = {num_players} needs an opponent='FILE.py:NAME', a "
                "function from observation to action"
            )
        raw = game if game.endswith("-raw") else f"{game}-raw"
        known = textarena.envs.registration.ENV_REGISTRY
        if raw not in known:
            raise ValueError(f"TextArena has no game {game!r}, expected one such as Wordle-v0")
        self._generator = random.Random()
        self._num_players = num_players
        self._opponent: Callable[[str], str] | None = load(opponent) if opponent else None
        self._env = self._with_own_numbers(lambda: textarena.make(raw, **arguments))

    def reset(self, *, seed: int, options: dict[str, Any]) -> Any:
        """The rules and the first state of the game."""
        self._generator.seed(seed)
        self._with_own_numbers(lambda: self._env.reset(num_players=self._num_players, seed=seed))
        return self._until_our_turn(False), {}

    def step(self, action: str) -> Any:
        """What the game says to the action, and what the others do."""
        done, _ = self._with_own_numbers(lambda: self._env.step(action))
        observation = self._until_our_turn(done)
        if not self._env.state.done:
            return observation, 0.0, False, False, {}
        rewards, info = self._env.close()
        reason = str(info.get(PLAYER, {}).get("reason", ""))
        return (
            observation or reason,
            float((rewards or {}).get(PLAYER, 0.0)),
            True,
            False,
            {"reason": reason},
        )

    def _until_our_turn(self, done: bool) -> str:
        """Lets the others play; what the player has been told since."""
        while not done:
            player, told = self._env.get_observation()
            text = _as_text(told)
            if player == PLAYER:
                return text
            assert self._opponent is not None
            action = self._opponent(text)
            done, _ = self._with_own_numbers(partial(self._env.step, action))
        return ""

    def _with_own_numbers(self, function: Callable[[], Any]) -> Any:
        """Calls what draws from Python's global generator with this episode's own numbers: other
        episodes go on in between."""
        outside = random.getstate()
        random.setstate(self._generator.getstate())
        try:
            return function()
        finally:
            self._generator.setstate(random.getstate())
            random.setstate(outside)


def _as_text(told: Any) -> str:
    """Messages of the game but for the player's own actions, which it has said itself."""
    if isinstance(told, str):
        return told
    return "\n".join(text for sender, text, _ in told if sender != PLAYER)
