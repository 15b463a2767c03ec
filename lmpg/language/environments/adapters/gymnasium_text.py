"""Environments that gymnasium has registered, whose observations and actions are Text."""

from __future__ import annotations

from typing import Any


class GymnasiumText:
    """An environment by its id, `ID` or `module:ID` where a module registers it."""

    def __init__(self, id: str, **kwargs: Any):
        import gymnasium

        try:
            self._env = gymnasium.make(id, disable_env_checker=True, **kwargs)
        except gymnasium.error.UnregisteredEnv as error:
            raise ValueError(
                f"gymnasium has no {id} here ({' '.join(str(error).split())}); one that a module "
                "registers is given as module:ID"
            ) from None
        for name in ("observation_space", "action_space"):
            space = getattr(self._env, name)
            if not isinstance(space, gymnasium.spaces.Text):
                raise TypeError(f"{id} has the {name} {space}, expected gymnasium.spaces.Text")

    def reset(self, *, seed: int, options: dict[str, Any]) -> Any:
        """What the environment's own reset gives."""
        return self._env.reset(seed=seed, options=options)

    def step(self, action: str) -> Any:
        """What the environment's own step gives."""
        return self._env.step(action)

    def close(self) -> None:
        """Closes it."""
        self._env.close()
