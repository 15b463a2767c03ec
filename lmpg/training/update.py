"""One update: epochs of shuffled minibatches, each one optimizer step on the global loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.functional.masking import loss_weights
from lmpg.training.diagnostics import Diagnostics
from lmpg.training.microbatches import microbatches
from lmpg.training.optimizer import policy_adamw, scheduled, stepped
from lmpg.training.processes import Processes
from lmpg.training.seeding import generator
from lmpg.training.settings import UpdateSettings
from lmpg.types import Algorithm, Credit, Evaluation, Minibatch, Rollout


class Updater:
    """Holds the optimizer. Weights of the loss are counted over the whole minibatch of all ranks,
    so micro-batches, accumulation and the number of processes never change the result.

    max_length: steps that a row can have at most, for the reduction `fixed_length`.
    old_is_new: there is one optimizer step per rollout, so that π_old is the policy that the step
    finds; its log-probs stand in place of the rollout's, which then need not be exact.
    """

    def __init__(
        self,
        policy: nn.Module,
        settings: UpdateSettings,
        total_steps: int,
        seed: int,
        processes: Processes,
        max_length: int = 1,
        old_is_new: bool = False,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self.total_steps = total_steps
        self.seed = seed
        self.processes = processes
        self.max_length = max_length
        self.old_is_new = old_is_new
        self.optimizer = policy_adamw(policy, settings)

    def update(
        self, algorithm: Algorithm, rollout: Rollout, credit: Credit, step: int
    ) -> dict[str, float]:
        """Improve the policy on `rollout`; `step` counts from 1. Returns the step's metrics."""
        whole = Minibatch.of(rollout, credit)
        if "observations" in whole.inputs:
            whole = _chosen_steps(whole)
        learning_rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        diagnostics = Diagnostics(self.processes)
        for rows in self._minibatches(len(whole.mask_BT), step):
            if not self._optimizer_step(algorithm, whole, rows, diagnostics):
                break
        return {**diagnostics.metrics(), "learning_rate": learning_rate}

    def _minibatches(self, num_rows: int, step: int) -> Iterator[Tensor]:
        """Row indices of each minibatch of all epochs, shuffled anew in each."""
        for epoch in range(self.settings.epochs):
            shuffle = generator(self.seed, "minibatches", step, epoch)
            order = torch.randperm(num_rows, generator=shuffle)
            yield from order.tensor_split(self._num_minibatches(num_rows))

    def _num_minibatches(self, num_rows: int) -> int:
        """Of equal size as far as possible: environments may hand over a few rows more or less
        than asked for, and the last rollout is shorter."""
        return max(1, round(num_rows / self.settings.minibatch_size))

    def learning_rate(self, step: int) -> float:
        """Learning rate of iteration `step` (from 1): linear warm-up, then the schedule."""
        return scheduled(self.settings, step, self.total_steps)

    def state(self) -> dict[str, Any]:
        """The optimizer's tensors and counters, for a checkpoint."""
        return {"optimizer": self.optimizer.state_dict()["state"]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": state["optimizer"]})

    def _optimizer_step(
        self, algorithm: Algorithm, whole: Minibatch, rows: Tensor, diagnostics: Diagnostics
    ) -> bool:
        """False where the policy has gone far enough already, so that the step is not taken."""
        mask_BT = whole.mask_BT.index_select(0, rows)
        weights_BT = loss_weights(mask_BT, algorithm.reduction, self.max_length)
        mine = torch.arange(self.processes.rank, len(rows), self.processes.count)
        # with fewer rows than processes, some have none
        share = whole.rows(rows.index_select(0, mine))
        sizes = (self.settings.microbatch_size, self.settings.microbatch_tokens)
        parts = microbatches(share.inputs, *sizes)
        for part in parts:
            batch = share if len(parts) == 1 else share.rows(part)
            chosen = mine if len(parts) == 1 else mine[part]
            weights = weights_BT.index_select(0, chosen).to(self.processes.device)
            self._accumulate(algorithm, batch, weights, diagnostics)
        if self._gone_far_enough(diagnostics):
            self.optimizer.zero_grad(set_to_none=True)
            diagnostics.add_left_out()
            return False
        norm = stepped(self.optimizer, self.settings, self.processes)
        diagnostics.add_optimizer_step(norm, bool(norm.isfinite()))
        return True

    def _gone_far_enough(self, diagnostics: Diagnostics) -> bool:
        """By the newest minibatch, before its step; looked at only where there is a limit."""
        target_kl, most_clipped = self.settings.target_kl, self.settings.target_clip_fraction
        if target_kl is None and most_clipped is None:
            return False
        kl, clip_fraction = diagnostics.newest()
        too_far = target_kl is not None and kl > 1.5 * target_kl
        return too_far or (most_clipped is not None and clip_fraction > most_clipped)

    def _accumulate(
        self,
        algorithm: Algorithm,
        batch: Minibatch,
        weights_BT: Tensor,
        diagnostics: Diagnostics,
    ) -> None:
        # inputs stay on the host, where lengths can be read without waiting for the device
        new = self.policy.evaluate(batch.inputs)  # type: ignore[operator]
        batch = replace(batch, inputs={}).to(self.processes.device)
        if self.old_is_new:
            batch = replace(batch, old_logprobs_BT=new.logprobs_BT.detach())
        leaf = _detached(new)
        terms = algorithm.loss_terms(leaf, batch)
        losses = {name: _weighted(term_BT, weights_BT) for name, term_BT in terms.items()}
        gradients = _gradients(losses, leaf)
        diagnostics.add(leaf, batch, losses, gradients)
        _backward(new, gradients)


def _chosen_steps(whole: Minibatch) -> Minibatch:
    """Each chosen step a row of its own: for policies without memory."""
    steps = whole.as_steps()
    return steps.rows(steps.mask_BT.squeeze(1).nonzero().squeeze(1))


def _detached(new: Evaluation) -> Evaluation:
    """The evaluation as leaves, so that each term's gradient can be looked at before it enters
    the model."""
    values = new.values_BT
    return Evaluation(
        new.logprobs_BT.detach().requires_grad_(),
        new.entropy_BT.detach().requires_grad_(),
        None if values is None else values.detach().requires_grad_(),
    )


def _weighted(term_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Σ term·weight; what is masked out may be anything, NaN too."""
    return (torch.where(weights_BT > 0, term_BT, 0) * weights_BT).sum()


def _leaves(evaluation: Evaluation) -> list[Tensor]:
    found = [evaluation.logprobs_BT, evaluation.entropy_BT, evaluation.values_BT]
    return [x for x in found if x is not None]


def _gradients(losses: dict[str, Tensor], leaf: Evaluation) -> dict[str, list[Tensor | None]]:
    """Per named loss, its gradient with respect to log-probs, entropy and values.

    Those of `policy`, `entropy` and `value` come from one call, as each depends on one of the three
    alone (see `lmpg.types.Algorithm.loss_terms`).
    """
    leaves = _leaves(leaf)
    alone = [name for name in ("policy", "entropy", "value") if name in losses]
    together = sum(losses[name] for name in alone)
    found = torch.autograd.grad(together, leaves, retain_graph=True, allow_unused=True)  # type: ignore
    place = {"policy": 0, "entropy": 1, "value": 2}
    gradients: dict[str, list[Tensor | None]] = {
        name: [x if i == place[name] else None for i, x in enumerate(found)] for name in alone
    }
    for name in losses.keys() - place.keys():
        grads = torch.autograd.grad(losses[name], leaves, retain_graph=True, allow_unused=True)
        gradients[name] = list(grads)
    return gradients


def _backward(new: Evaluation, gradients: dict[str, list[Tensor | None]]) -> None:
    """Send the summed gradients of all terms through the model, where they are needed."""
    outputs, grads = [], []
    for i, output in enumerate(_leaves(new)):
        parts = [part for g in gradients.values() if (part := g[i]) is not None]
        if parts and output.requires_grad:
            outputs.append(output)
            grads.append(parts[0] if len(parts) == 1 else torch.stack(parts).sum(0))
    if outputs:
        torch.autograd.backward(outputs, grads)
