"""One update: epochs of shuffled minibatches, each one optimizer step on the global loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.functional.masking import Reduction, loss_weights
from lmpg.runtime.processes import Processes
from lmpg.runtime.seeding import generator
from lmpg.training.diagnostics import Diagnostics
from lmpg.training.microbatches import microbatches
from lmpg.training.optimizer import policy_adamw, stepped
from lmpg.training.schedules import scheduled
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
        # inputs stay on the host, where lengths can be read without waiting for the device
        inputs = whole.inputs
        whole = replace(replace(whole, inputs={}).to(self.processes.device), inputs=inputs)
        learning_rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        diagnostics = Diagnostics(self.processes)
        for minibatch in self._minibatches(whole, step):
            if not self._optimizer_step(algorithm, minibatch, diagnostics):
                break
        return {**diagnostics.metrics(), "learning_rate": learning_rate}

    def _minibatches(self, whole: Minibatch, step: int) -> Iterator[Minibatch]:
        """Those of all epochs; rows are shuffled anew in each, unless they all stay together."""
        num_rows = len(whole.mask_BT)
        count = self._num_minibatches(num_rows)
        for epoch in range(self.settings.epochs):
            if count == 1:
                yield whole
                continue
            shuffle = generator(self.seed, "minibatches", step, epoch)
            yield from whole.rows(torch.randperm(num_rows, generator=shuffle)).split(count)

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
        self, algorithm: Algorithm, minibatch: Minibatch, diagnostics: Diagnostics
    ) -> bool:
        """False where the policy has gone far enough already, so that the step is not taken."""
        diagnostics.begin_minibatch()
        weights_BT = self._weights(minibatch, algorithm.reduction)
        if self.processes.count > 1:  # with fewer rows than processes, some have none
            mine = torch.arange(self.processes.rank, len(weights_BT), self.processes.count)
            minibatch, weights_BT = minibatch.rows(mine), _rows(weights_BT, mine)
        rows, tokens = self.settings.microbatch_size, self.settings.microbatch_tokens
        if 0 < len(weights_BT) <= rows and not tokens:
            self._accumulate(algorithm, minibatch, weights_BT, diagnostics)
        else:
            for part in microbatches(minibatch.inputs, rows, tokens):
                weights = _rows(weights_BT, part)
                self._accumulate(algorithm, minibatch.rows(part), weights, diagnostics)
        if self._gone_far_enough(diagnostics):
            self.optimizer.zero_grad(set_to_none=True)
            diagnostics.add_left_out()
            return False
        norm = stepped(self.optimizer, self.settings, self.processes)
        diagnostics.add_optimizer_step(norm)
        return True

    def _gone_far_enough(self, diagnostics: Diagnostics) -> bool:
        """By the newest minibatch, before its step; looked at only where there is a limit."""
        target_kl, most_clipped = self.settings.target_kl, self.settings.target_clip_fraction
        if target_kl is None and most_clipped is None:
            return False
        kl, clip_fraction = diagnostics.newest()
        too_far = target_kl is not None and kl > 1.5 * target_kl
        return too_far or (most_clipped is not None and clip_fraction > most_clipped)

    def _weights(self, minibatch: Minibatch, reduction: Reduction) -> Tensor:
        """Rows of single steps, all of them chosen, weigh the same under every reduction."""
        if "observations" in minibatch.inputs:
            return _equal_weights(len(minibatch.mask_BT))
        return loss_weights(minibatch.mask_BT, reduction, self.max_length)

    def _accumulate(
        self,
        algorithm: Algorithm,
        batch: Minibatch,
        weights_BT: Tensor,
        diagnostics: Diagnostics,
    ) -> None:
        leaf, backward = _differentiated(self.policy, batch.inputs)
        if self.old_is_new:
            batch = replace(batch, old_logprobs_BT=leaf.logprobs_BT.detach())
        terms = algorithm.loss_terms(leaf, batch)
        gradients = _gradients(terms, weights_BT, leaf)
        diagnostics.add(leaf, batch, terms, weights_BT, gradients)
        backward(*_summed(gradients))


def _chosen_steps(whole: Minibatch) -> Minibatch:
    """Each chosen step a row of its own: for policies without memory."""
    steps = whole.as_steps()
    return steps.rows(steps.mask_BT.squeeze(1).nonzero().squeeze(1))


def _differentiated(
    policy: Any, inputs: dict[str, Tensor]
) -> tuple[Evaluation, Callable[..., None]]:
    """What the policy thinks, as leaves, so that each term's gradient can be looked at before it
    enters the model; and the way there, which takes the gradients by log-probs, entropy, values."""
    by_hand = policy.differentiated(inputs) if hasattr(policy, "differentiated") else None
    new, backward = by_hand or (policy.evaluate(inputs), None)
    leaf = Evaluation(*[x.detach().requires_grad_() for x in _leaves(new)])
    return leaf, backward or partial(_backward, _leaves(new))


@lru_cache(maxsize=8)
def _equal_weights(count: int) -> Tensor:
    return torch.full((count, 1), 1 / max(1, count))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index.to(x.device))


def _leaves(evaluation: Evaluation) -> list[Tensor]:
    found = [evaluation.logprobs_BT, evaluation.entropy_BT, evaluation.values_BT]
    return [x for x in found if x is not None]


def _gradients(
    terms: dict[str, Tensor], weights_BT: Tensor, leaf: Evaluation
) -> dict[str, list[Tensor | None]]:
    """Per named term, the gradient of Σ term·weight with respect to log-probs, entropy and values.

    Those of `policy`, `entropy` and `value` come from one call, as each depends on one of the three
    alone (see `lmpg.types.Algorithm.loss_terms`). What is masked out weighs
    nothing, but must be finite.
    """
    leaves = _leaves(leaf)
    place = {"policy": 0, "entropy": 1, "value": 2}
    gradients: dict[str, list[Tensor | None]] = {name: [None] * len(leaves) for name in terms}
    known = [name for name in terms if terms[name].requires_grad]  # a constant has no gradient
    alone = [name for name in known if name in place]
    others = [name for name in known if name not in place]
    if alone:
        found = torch.autograd.grad(
            [terms[name] for name in alone],
            leaves,
            [weights_BT] * len(alone),
            retain_graph=bool(others),
            allow_unused=True,
        )
        for name in alone:
            gradients[name] = [x if i == place[name] else None for i, x in enumerate(found)]
    for name in others:
        grads = torch.autograd.grad(
            terms[name], leaves, weights_BT, retain_graph=True, allow_unused=True
        )
        gradients[name] = list(grads)
    return gradients


def _summed(gradients: dict[str, list[Tensor | None]]) -> list[Tensor | None]:
    """Over all terms: by log-probs, entropy and values."""
    found: list[Tensor | None] = []
    for parts in zip(*gradients.values()):
        known = [part for part in parts if part is not None]
        found.append(torch.stack(known).sum(0) if len(known) > 1 else next(iter(known), None))
    return found


def _backward(outputs: list[Tensor], *gradients: Tensor | None) -> None:
    """Send gradients by `outputs` through the model, where they are needed."""
    pairs = [(x, g) for x, g in zip(outputs, gradients) if g is not None and x.requires_grad]
    if pairs:
        torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
