"""Learning from a fixed set of examples: texts, pairs. One loop for every such objective.

An objective says what an example's loss is and how much the example weighs. The loss of a
minibatch is Σ loss / Σ weight over all of its examples, on whichever process and in whichever
micro-batch they are: those change memory and time, never the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lmpg.runs.saved.run_progress import Progress
from lmpg.runtime.machine import Stopwatch, widest
from lmpg.runtime.parts import load_weights
from lmpg.runtime.processes import Processes
from lmpg.settings.section import Diverged
from lmpg.training.loop import Loop
from lmpg.training.optimizer import (
    bytes_to_come,
    learning_rate,
    load_optimizer,
    new_optimizer,
    take_step,
)
from lmpg.training.settings import OfflineSettings
from lmpg.training.token_view import views_tokens

E = TypeVar("E")


class Objective(Protocol[E]):
    """What is learned, by which module, from which examples.

    best_metric, lower_is_better, step_name: see `lmpg.training.source.Evaluable`; steps are what
    `num_tokens` counts. counters: numbers of earlier minibatches that later losses depend on, which
    belong to a checkpoint; most objectives have none.
    """

    best_metric: str
    lower_is_better: bool
    step_name: str
    counters: dict[str, float]

    @property
    def module(self) -> nn.Module:
        """The module that is trained."""
        ...

    def epoch(self, number: int) -> Sequence[E]:
        """The examples of an epoch (from 0), in their order."""
        ...

    def weight(self, example: E) -> float:
        """Number of terms that the example adds to the loss; the loss is the mean over terms."""
        ...

    def num_tokens(self, example: E) -> int:
        """Number of tokens that the model reads for the example."""
        ...

    def prepare(self, batch: list[E], parts: list[list[E]]) -> None:
        """Compute the numbers of a whole minibatch that its losses depend on. batch: all its
        examples; parts: this rank's micro-batches of them."""
        ...

    def loss_sums(self, examples: list[E]) -> dict[str, Tensor]:
        """`loss`, with gradient, and further metrics, each summed over the examples' terms."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics of the module as it is now, the same on every rank."""
        ...

    def samples(self, with_tokens: bool) -> list[dict[str, Any]]:
        """Held-out examples as rows of samples.jsonl, as the module sees them now; may be [].
        with_tokens: with the numbers of their tokens, if it shows such."""
        ...


class OfflineUpdater(Generic[E]):
    """Holds the optimizer and knows which examples each step learns from."""

    def __init__(
        self,
        objective: Objective[E],
        settings: OfflineSettings,
        processes: Processes,
        max_steps: int = 10**9,
    ) -> None:
        self.objective = objective
        self.settings = settings
        self.processes = processes
        self.parameters = [p for p in objective.module.parameters() if p.requires_grad]
        self.optimizer = new_optimizer(self.parameters, settings)
        self._epoch = (0, objective.epoch(0))
        self.steps_per_epoch = math.ceil(len(self._epoch[1]) / settings.minibatch_size)
        self.total_steps = min(max_steps, self.steps_per_epoch * settings.epochs)

    def minibatch(self, step: int) -> list[E]:
        """The examples of step `step` (from 1); epochs are divided into equal parts."""
        number, part = divmod(step - 1, self.steps_per_epoch)
        if self._epoch[0] != number:
            self._epoch = (number, self.objective.epoch(number))
        examples = self._epoch[1]
        cut = [len(examples) * i // self.steps_per_epoch for i in (part, part + 1)]
        return list(examples[cut[0] : cut[1]])

    def update(self, step: int) -> dict[str, float]:
        """One optimizer step; `step` counts from 1. Returns its metrics."""
        rate = learning_rate(self.settings, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.minibatch(step)
        weight = sum(map(self.objective.weight, batch))
        sums: dict[str, Tensor] = {}
        parts = self.processes.in_step(self._microbatches(batch), [])
        self.objective.prepare(batch, parts)
        for number, part in enumerate(parts, start=1):
            # a rank without examples computes one that weighs nothing, for names and in step
            found = self.objective.loss_sums(part or batch[:1])
            loss = found["loss"] / weight if part else found["loss"] * 0
            last = number == len(parts)
            with self.processes.last_backward(self.parameters) if last else nullcontext():
                loss.backward()
            for name, x in found.items():
                sums[name] = sums.get(name, 0) + (x.detach() if part else torch.zeros_like(x))
        norm = take_step(self.optimizer, self.settings, self.processes)
        wide = widest(self.processes.device)
        totals = self.processes.sum(torch.stack([x.to(wide) for x in sums.values()]))
        return {
            **{name: total / weight for name, total in zip(sums, totals.tolist())},
            "grad_norm": float(norm),
            "learning_rate": rate,
            "epoch": step / self.steps_per_epoch,
        }

    def state(self) -> dict[str, Any]:
        """The optimizer's tensors and counters and the objective's, for a checkpoint."""
        optimizer = self.optimizer.state_dict()["state"]
        return {"optimizer": optimizer, "objective": dict(self.objective.counters)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.objective.counters.update(state.get("objective", {}))

    def _microbatches(self, batch: list[E]) -> list[list[E]]:
        """This rank's part of a minibatch; examples of like length together need less padding."""
        ordered = sorted(batch, key=self.objective.num_tokens)
        mine = ordered[self.processes.rank :: self.processes.count]
        size = self.settings.microbatch_size
        return [mine[i : i + size] for i in range(0, len(mine), size)] or [[]]


@dataclass(kw_only=True)
class Offline(Loop):
    """Learning from a fixed set of examples."""

    source: Objective
    updater: OfflineUpdater

    def weights(self) -> Iterable[Tensor]:
        """All that is trained."""
        return self.updater.parameters

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        named = self.source.module.named_parameters()
        return {
            "module": {name: p.detach() for name, p in named if p.requires_grad},
            "updater": self.updater.state(),
            "tracker": self.tracker.state(),
            "progress": self.progress.state(),
        }

    def bytes_to_come(self) -> int:
        """Bytes that a first step adds to the state: the optimizer's."""
        return bytes_to_come(self.updater.optimizer, self.updater.settings)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken; the metrics are cut back to it."""
        named = self.source.module.named_parameters()
        load_weights({n: p for n, p in named if p.requires_grad}, state["module"])
        self.updater.load_state(state["updater"])
        self.progress = Progress.from_state(state["progress"])
        self.tracker.cut_back(state["tracker"])

    def run(self) -> str:
        """The run, after an evaluation whose examples are shown."""
        if not self.progress.before:
            self.progress.before = self.source.evaluate()
            self._show(with_tokens=True)
        return super().run()

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics at the end; what the module makes of some examples goes to
        samples.jsonl."""
        found = super().evaluate()
        self._show(with_tokens=True)
        return found

    def _evaluate_and_keep_best(self) -> dict[str, float]:
        """Shows the examples, but for the last step: the evaluation at the end does so then."""
        found, iteration = super()._evaluate_and_keep_best(), self.progress.iteration
        if iteration < self.total_steps:
            self._show(views_tokens(iteration, self.every, self.total_steps))
        return found

    def _show(self, with_tokens: bool) -> None:
        if self.processes.is_main:
            self.tracker.samples(self.progress.iteration, self.source.samples(with_tokens))

    def iterate(self, iteration: int) -> dict[str, float]:
        """One optimizer step on the next minibatch."""
        watch = Stopwatch()
        with watch("time/update"):
            metrics = self.updater.update(iteration)
        if not math.isfinite(metrics["grad_norm"]):
            raise Diverged(
                f"step {iteration}: the gradient was inf or NaN, so nothing could be learned from "
                "this minibatch. Lower update.learning_rate or update.max_grad_norm, or use "
                "model.precision fp32"
            )
        num_tokens = sum(map(self.source.num_tokens, self.updater.minibatch(iteration)))
        self.progress.num_tokens_or_steps += num_tokens
        return metrics | watch.seconds
