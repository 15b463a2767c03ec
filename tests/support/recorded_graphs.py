"""A stand-in for CUDA graphs on the CPU: the operations of a step, recorded once and repeated.

As with CUDA graphs no Python runs at a replay, every operation reads and writes the memory that it
had when it was recorded, and recording leaves that memory as it was.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(x):
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)]


def places(xs):
    return {x.untyped_storage().data_ptr() for x in xs}


class Recording(TorchDispatchMode):
    """Operations as they are done, and what was in the memory that they write."""

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.made = [], {}, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        schema = function._schema.arguments
        names = {x.name for x in schema if x.alias_info is not None and x.alias_info.is_write}
        given = {x.name: value for x, value in zip(schema, args)} | kwargs
        written = tensors([given[name] for name in names if name in given])
        for x in written:
            storage = x.untyped_storage()
            if storage.data_ptr() not in self.made | self.before.keys():
                self.before[storage.data_ptr()] = storage, storage.clone()
        result = function(*args, **kwargs)
        new = [x for x in tensors(result) if not places([x]) & places(tensors((args, kwargs)))]
        self.made |= places(new)
        if written or new:  # views need not be made again
            self.operations.append((function, args, kwargs, result, bool(new)))
        return result

    def restore(self):
        for storage, before in self.before.values():
            storage.copy_(before)


class RecordedGraphs:
    """Captures steps; counts what is captured and replayed. broken: says why nothing can be."""

    name = "recorded graph"

    def __init__(self, broken=None):
        self.captures, self.replays, self.broken = 0, Counter(), broken

    def __call__(self, step):
        if self.broken:
            raise RuntimeError(self.broken)
        number = self.captures = self.captures + 1
        with Recording() as recording:
            step()
        recording.restore()

        def replay():
            self.replays[number] += 1
            for function, args, kwargs, result, new in recording.operations:
                again = function(*args, **kwargs)
                if new:
                    for x, y in zip(tensors(result), tensors(again)):
                        x.copy_(y)

        return replay
