"""What an environment remembers beside its generator: attributes that can be saved and put back.

Numbers, texts, arrays, generators, and lists, dicts and objects of these. An episode is put back by
playing it again from its start; what the environment has kept from the episodes before (a
curriculum, a count) must be as it was then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec

Memory = dict[str, Any]

LARGEST, LONGEST = 2**14, 1000
"""Bytes of an array, and entries of a list, that are still copied: larger ones are data."""

_DEEPEST, _DEEPEST_OBJECT = 5, 2
_DTYPES = {"bool", "float16", "float32", "float64", "complex64", "complex128"} | {
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}
_SIMPLE = (type(None), bool, int, float, str)
_SKIPPED = {"env", "_np_random", "_np_random_seed", "spec"}
_UNKNOWN = object()


def remembered(env: gymnasium.Env) -> Memory:
    """Copies of what the environment and its wrappers hold, by layer and name, for a checkpoint."""
    found: Memory = {}
    for depth, layer in enumerate(_layers(env)):
        for name, value in vars(layer).items():
            if name not in _SKIPPED and (copy := _saved(value, 1)) is not _UNKNOWN:
                found[f"{depth}.{name}"] = copy
    return found


def put_back(env: gymnasium.Env, memory: Memory) -> None:
    """Give the environment what it held; attributes that have not changed are left alone."""
    layers, now = list(_layers(env)), remembered(env)
    for path, value in memory.items():
        depth, _, name = path.partition(".")
        if int(depth) < len(layers) and not same(now.get(path, _UNKNOWN), value):
            _set(layers[int(depth)], name, value)


def same(a: Any, b: Any) -> bool:
    """Whether two memories, or parts of them, are equal; NaN equals NaN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (type(a) is type(b) and (a == b or (a != a and b != b)))


def _layers(env: gymnasium.Env) -> Iterator[Any]:
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def _saved(value: Any, depth: int) -> Any:
    """A copy as a checkpoint takes it: simple values as they are, others as [kind, content]."""
    kind = type(value)
    if kind in _SIMPLE:
        return value
    if isinstance(value, np.ndarray | np.generic):
        fits = value.dtype.name in _DTYPES and value.nbytes <= LARGEST
        return [kind.__name__, np.array(value)] if fits else _UNKNOWN
    if kind in _STATES:
        return [kind.__name__, listed(_STATES[kind][0](value))]
    if depth >= _DEEPEST or isinstance(value, Space | EnvSpec | gymnasium.Env):
        return _UNKNOWN
    if kind in (list, tuple, set, dict):
        return _saved_entries(value, depth)
    if depth <= _DEEPEST_OBJECT and getattr(value, "__dict__", None) and not callable(value):
        parts = {name: _saved(part, depth + 1) for name, part in vars(value).items()}
        return ["object", {k: v for k, v in parts.items() if v is not _UNKNOWN}]
    return _UNKNOWN


def _saved_entries(value: Any, depth: int) -> Any:
    if len(value) > LONGEST:
        return _UNKNOWN
    entries = list(value.items()) if isinstance(value, dict) else list(value)
    copies = [_saved(entry, depth + 1) for entry in entries]
    if any(_has_unknown(copy) for copy in copies):
        return _UNKNOWN
    return [type(value).__name__, copies]


def _has_unknown(copy: Any) -> bool:
    return copy is _UNKNOWN or (isinstance(copy, list) and copy[0] == "object")


def _set(holder: Any, name: str, saved: Any) -> None:
    """Put a copy back; generators and objects stay the same ones, as others may hold them too."""
    kind, now = saved[0] if isinstance(saved, list) else "", vars(holder).get(name)
    if kind == "object":
        for key, part in saved[1].items() if hasattr(now, "__dict__") else ():
            _set(now, key, part)
    elif kind in (known.__name__ for known in _STATES):
        if type(now).__name__ == kind:
            _STATES[type(now)][1](now, saved[1])
    else:
        vars(holder)[name] = _restored(saved)


def _restored(saved: Any) -> Any:
    if not isinstance(saved, list):
        return saved
    kind, content = saved
    if isinstance(content, np.ndarray):
        return content.copy() if kind == "ndarray" else content[()]
    makers = {"list": list, "tuple": tuple, "set": set, "dict": dict}
    return makers[kind](_restored(entry) for entry in content)


def listed(value: Any) -> Any:
    """Arrays inside a generator's state as lists of ints, which JSON holds exactly."""
    if isinstance(value, dict):
        return {k: listed(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _set_python_state(rng: random.Random, state: Any) -> None:
    rng.setstate((state[0], tuple(state[1]), state[2]))


_STATES: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    np.random.Generator: (
        lambda rng: rng.bit_generator.state,
        lambda rng, state: setattr(rng.bit_generator, "state", state),
    ),
    np.random.RandomState: (
        lambda rng: rng.get_state(legacy=False),
        lambda rng, state: rng.set_state(state),
    ),
    random.Random: (lambda rng: rng.getstate(), _set_python_state),
}
"""Generators: how their state is read, and set."""
