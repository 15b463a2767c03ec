"""The usual mistakes in an environment of one's own, told in one line that names it.

gymnasium's wrappers unpack what an environment returns without looking; its checker looks once,
at the first step, and leaves what it finds to a traceback.
"""

from __future__ import annotations

import inspect
import math
import traceback
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from lmpg.settings.said_once import say_once
from lmpg.settings.section import UserError

RESET = "reset(self, *, seed=None, options=None), which returns (observation, info)"
FAILURES = (Exception, SystemExit)
"""What an environment's code may raise; one that calls `sys.exit` does not mean the run's end."""
STEP = "(observation, reward, terminated, truncated, info)"


def mistake(env_id: str, text: str) -> UserError:
    """The error for an environment that breaks gymnasium's rules."""
    return UserError(f"env.id = {env_id}: {text}")


def raised(env_id: str, where: str, error: BaseException) -> UserError:
    """The error for an exception of the environment's own, with its place in the code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    name = type(error).__name__
    return mistake(env_id, f"{where} raised {name}: {text} ({frame.filename}:{frame.lineno})")


def require_methods(env: gymnasium.Env, env_id: str) -> None:
    """UserError where the environment lacks `step` or `reset`, or has an old `reset`."""
    kind = type(env.unwrapped)
    if kind.step is gymnasium.Env.step:
        raise mistake(env_id, f"{kind.__name__} has no step; expected one that returns {STEP}")
    if kind.reset is gymnasium.Env.reset:
        raise mistake(env_id, f"{kind.__name__} has no reset; expected {RESET}")
    taken = inspect.signature(kind.reset).parameters.values()
    names = {p.name for p in taken}
    if not {"seed", "options"} <= names and all(p.kind is not p.VAR_KEYWORD for p in taken):
        raise mistake(
            env_id, f"{kind.__name__}.reset takes no seed or no options; expected {RESET}"
        )


def require_reset(env_id: str, space: Space, found: Any) -> None:
    """UserError where this is not what `reset` returns."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise mistake(env_id, f"reset() returned {_kind(found)}; expected (observation, info)")
    if not isinstance(found[1], dict):
        raise mistake(env_id, f"reset() returned {_kind(found[1])} as info; expected a dict")
    require_observation(env_id, space, found[0], "reset()")


def require_step(env_id: str, space: Space, found: Any) -> None:
    """UserError where this is not what `step` returns."""
    if not isinstance(found, tuple) or len(found) != 5:
        old = isinstance(found, tuple) and len(found) == 4
        hint = ". The old API's done has become terminated and truncated" if old else ""
        raise mistake(env_id, f"step() returned {_kind(found)}; expected {STEP}{hint}")
    observation, reward, terminated, truncated, info = found
    number(env_id, reward)
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        flag(env_id, name, value)
    if not isinstance(info, dict):
        raise mistake(env_id, f"step() returned {_kind(info)} as info; expected a dict")
    require_observation(env_id, space, observation, "step()")


def number(env_id: str, reward: Any) -> float:
    """A reward as a number; an array of one element is one."""
    if isinstance(reward, int | float):
        return float(reward)
    try:
        return float(reward.item())
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise mistake(env_id, f"step() paid {_kind(reward)}; expected one number") from None


def flag(env_id: str, name: str, value: Any) -> bool:
    """`terminated` or `truncated` as True or False; 0, 1 and an array of one of these are."""
    found = value.item() if getattr(value, "size", None) == 1 else value
    if isinstance(found, bool | np.bool_) or (isinstance(found, int | float) and found in (0, 1)):
        return bool(found)
    raise mistake(env_id, f"step() returned {_kind(value)} as {name}; expected True or False")


def require_observation(env_id: str, space: Space, x: Any, where: str) -> None:
    """UserError where `x` cannot be an observation of this space; outside of a Box's bounds it can,
    which is said once, as the bounds are used for nothing."""
    wrong = _wrong(space, x, "observation")
    if wrong:
        raise mistake(env_id, f"{where} shows {wrong}; its observation_space is {space}")


def say_bounds(env_id: str, space: Space, x: Any) -> None:
    """Say once that an observation lies outside of its Box; harmless here, but a mistake."""
    if isinstance(space, spaces.Box):
        low, high = _widened(space)
        if ((np.asarray(x) < low) | (np.asarray(x) > high)).any():
            say_once(
                f"env.id = {env_id}: it shows {_short(x)}, outside of its observation_space "
                f"{space}. Training takes the numbers as they are",
                about=f"bounds of {env_id}",
            )


def _widened(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Bounds with room for rounding."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return low - 1e-5 * (1 + abs(low)), high + 1e-5 * (1 + abs(high))


def _wrong(space: Space, x: Any, name: str) -> str | None:
    """What is wrong with an observation, in words; None if it fits."""
    if isinstance(space, spaces.Dict):
        if not isinstance(x, dict):
            return f"{_kind(x)} as {name}"
        missing = [key for key in space.spaces if key not in x]
        if missing:
            return f"no {missing[0]!r} in {name}"
        parts: list[Any] = [(key, part, x[key]) for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        if not isinstance(x, tuple | list) or len(x) != len(space.spaces):
            return f"{_kind(x)} as {name}"
        parts = [(i, part, x[i]) for i, part in enumerate(space.spaces)]
    else:
        return _wrong_numbers(space, x, name)
    return next((w for key, part, y in parts if (w := _wrong(part, y, f"{name}[{key!r}]"))), None)


def _wrong_numbers(space: Space, x: Any, name: str) -> str | None:
    try:
        found = np.asarray(x)
    except ValueError:  # lists of different lengths
        return f"{_kind(x)} as {name}"
    if found.dtype.kind not in "biuf":
        return f"{_kind(x)} as {name}"
    if isinstance(space, spaces.Discrete):
        if found.shape or not _among(found - space.start, int(space.n)):
            return f"{_short(x)} as {name}"
    elif found.shape != space.shape:
        return f"{name} of shape {found.shape}"
    elif isinstance(space, spaces.MultiDiscrete) and not _among(found - space.start, space.nvec):
        return f"{_short(x)} as {name}"
    return None


def _among(x: np.ndarray, count: Any) -> bool:
    return bool(((x >= 0) & (x < count) & (x == np.floor(x))).all())


def require_finite(env_id: str, x: np.ndarray, what: str) -> None:
    """UserError where numbers are NaN or infinite: nothing can be learned from them."""
    if not math.isfinite(x.sum()) and not np.isfinite(x).all():
        bad = x[~np.isfinite(x)][0]
        raise mistake(env_id, f"{what} {bad}, which nothing can be learned from")


def _kind(value: Any) -> str:
    """What a value is, for an error."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, tuple):
        return f"{len(value)} values"
    return f"{_short(value)} ({type(value).__name__})"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
