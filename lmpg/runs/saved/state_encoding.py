"""A run's state as JSON and named tensors, and back: what a checkpoint's files hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmpg.runtime.parts import is_shared_out, mine


def num_bytes(state: Any) -> int:
    """Bytes that the tensors and arrays of a state take in a checkpoint, where each is once."""
    found: dict[tuple, int] = {}
    waiting = [state]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, np.ndarray):
            found[id(value),] = value.nbytes
        elif isinstance(value, Tensor):
            found[_place(value)] = value.nbytes
    return sum(found.values())


def _place(tensor: Tensor) -> tuple:
    """The same for the same numbers in memory alone, as long as the tensor lives."""
    return mine(tensor).data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


class Encoder:
    """Turns a state into JSON, with the tensors put aside under names."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple, str] = {}
        self._storages: set[int] = set()
        self._alive: list[Tensor] = []  # addresses are unique only among living tensors

    def encode(self, value: Any, path: str) -> Any:
        """JSON for `value`; `path` names it in errors."""
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"__float__": repr(float(value))}
        if isinstance(value, Tensor):
            kind = "__parts__" if is_shared_out(value) else "__tensor__"
            return {kind: self._put(value)}
        if isinstance(value, np.ndarray):
            return {"__array__": self._put(torch.from_numpy(np.array(value)))}
        if isinstance(value, dict):
            return self._mapping(value, path)
        if isinstance(value, list | tuple):
            items = [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"__tuple__": items}
        raise TypeError(
            f"{path} is a {type(value).__name__}; a checkpoint holds tensors, numpy arrays, "
            "numbers, strings, None, and lists or dicts of them"
        )

    def _mapping(self, value: dict, path: str) -> Any:
        pairs = [(key, self.encode(item, f"{path}.{key}")) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in pairs):
            return dict(pairs)
        return {"__dict__": [[self.encode(key, f"{path} (key)"), item] for key, item in pairs]}

    def _put(self, tensor: Tensor) -> str:
        """A name for the tensor; one that is already there under another path is not repeated."""
        tensor, name = tensor.detach(), f"t{len(self.tensors)}"
        if is_shared_out(tensor):
            self.tensors[name] = tensor
            return name
        place = _place(tensor)
        if tensor.numel() and place in self._names:
            return self._names[place]
        self._alive.append(tensor)
        self._names[place] = name
        copy = tensor.cpu().contiguous()
        storage = copy.untyped_storage().data_ptr()
        if storage in self._storages:  # safetensors refuses views that overlap
            copy = copy.clone()
        self._storages.add(storage)
        self.tensors[name] = copy
        return name


def decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The state that an `Encoder` made `value` of, with these tensors."""
    if isinstance(value, list):
        return [decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__float__" in value:
        return float(value["__float__"])
    for kind in ("__tensor__", "__parts__"):
        if kind in value:
            return tensors[value[kind]]
    if "__array__" in value:
        return tensors[value["__array__"]].numpy()
    if "__tuple__" in value:
        return tuple(decoded(item, tensors) for item in value["__tuple__"])
    if "__dict__" in value:
        return {decoded(k, tensors): decoded(v, tensors) for k, v in value["__dict__"]}
    return {key: decoded(item, tensors) for key, item in value.items()}
