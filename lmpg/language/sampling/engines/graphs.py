"""Decode steps captured once per shape, as CUDA graphs, and replayed at no cost for the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)
Step = Callable[[], None]


class Capture(Protocol):
    """Records a step without running it."""

    name: str

    def __call__(self, step: Step) -> Step:
        """Returns a function that repeats the step on the same memory."""
        ...


class CudaGraphs:
    """torch's CUDA graphs; all take their temporary memory from one pool."""

    name = "CUDA graph"

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Step) -> Step:
        """A graph's `replay`; raises RuntimeError where the step cannot be captured."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # other threads may go on using the device
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        finally:
            torch.cuda.set_stream(stream)  # a capture that failed may have left its own
        return graph.replay


class Replays:
    """Runs steps. The first of each key runs as it is, so that libraries can set themselves up; the
    second is captured, and replayed from then on. failure: why nothing is captured any more."""

    def __init__(self, capture: Capture):
        self._capture = capture
        self._repeats: dict[Hashable, Step | None] = {}
        self.failure: str | None = None

    @property
    def backend(self) -> str:
        """How steps are run, in words."""
        name = self._capture.name
        return name if self.failure is None else f"no {name}, because {self.failure}"

    def forget(self) -> None:
        """Drops all captured steps, because the memory that they work on has moved."""
        self._repeats.clear()

    def __call__(self, key: Hashable, step: Step) -> None:
        """Runs a step; steps of the same `key` do the same to the same memory."""
        repeat = self._repeats.get(key)
        if repeat is None and key in self._repeats and self.failure is None:
            repeat = self._repeats[key] = self._captured(step)
        self._repeats.setdefault(key, None)
        (repeat or step)()

    def _captured(self, step: Step) -> Step | None:
        try:
            return self._capture(step)
        except RuntimeError as error:
            self.failure = str(error).strip().split("\n")[0]
            logger.warning("sampling without a %s: %s", self._capture.name, self.failure)
            return None


def bucketed(number: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, … that is not below `number`: few shapes, of
    which less than a third is padding."""
    power = 1 << max(number - 1, 0).bit_length()
    three_quarters = power // 4 * 3
    return three_quarters if three_quarters >= number else power
