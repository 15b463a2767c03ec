"""The loop of textbook methods: a run like any other, but with updates of the method's own."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lmpg.gym.classic.batches import BatchMethod
from lmpg.gym.classic.incremental import IncrementalMethod
from lmpg.gym.rollouts import GymSource
from lmpg.runs.saved.run_progress import Progress
from lmpg.runtime.machine import Stopwatch
from lmpg.runtime.seeding import generator
from lmpg.settings.section import RunStopped
from lmpg.training.loop import Loop


@dataclass(kw_only=True)
class Textbook(Loop):
    """Learning by `method`; `method_state` is what it knows beside the policy's weights."""

    source: GymSource
    method: BatchMethod | IncrementalMethod
    method_state: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.method_state = self.method.initial_state(self.source.policy, self.source.run.seed)

    def weights(self) -> Iterable[Tensor]:
        """All that is trained."""
        return self.source.policy.trainable_state().values()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        return {
            "policy": self.source.policy.trainable_state(),
            "method": self.method_state,
            "source": self.source.state(),
            "tracker": self.tracker.state(),
            "progress": self.progress.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; metrics are cut back to it."""
        self.source.policy.load_trainable_state(state["policy"])
        self.method_state = state["method"]
        self.source.load_state(state["source"])
        self.progress = Progress.from_state(state["progress"])
        self.tracker.cut_back(state["tracker"])

    def iterate(self, step: int) -> dict[str, float]:
        """A rollout and what is learned from it, or steps that are learned from one by one."""
        before = copy.deepcopy((self.source.policy.trainable_state(), self.method_state))
        found = self._learn_by(self.method, step)
        self._stop_if_something_is_not_finite(step, *before)
        self.progress.num_tokens_or_steps = self.source.runner.num_steps
        return found

    def _learn_by(self, method: BatchMethod | IncrementalMethod, step: int) -> dict[str, float]:
        source, policy, watch = self.source, self.source.policy, Stopwatch()
        if isinstance(method, IncrementalMethod):
            until = min(step * source.update.rollout_size, source.run.total_timesteps)
            act = generator(source.run.seed, "act", step)
            with watch("time/update"):
                found = method.iterate(policy, source.runner, self.method_state, until, act)
            return source.runner.metrics() | found | watch.seconds
        collected = source.collect(step)
        shuffle = generator(source.run.seed, "minibatches", step)
        with watch("time/update"):
            found = method.update(policy, collected.rollout, self.method_state, shuffle)
        return collected.metrics | found | watch.seconds

    def _stop_if_something_is_not_finite(
        self, step: int, weights: dict[str, Tensor], method_state: dict[str, Any]
    ) -> None:
        """Restores the state before this iteration, which is then saved, and stops the run."""
        tensors = self.source.policy.trainable_state()
        broken = [name for name, x in tensors.items() if not x.isfinite().all()]
        if broken:
            self.source.policy.load_trainable_state(weights)
            self.method_state = method_state
            raise RunStopped(
                f"step {step}: {broken[0]} became inf or NaN. Start a run with smaller step sizes "
                "(algorithm.…, see --help)"
            )
