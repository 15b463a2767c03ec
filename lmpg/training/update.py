"""One update: epochs of shuffled minibatches, each one optimizer step on the global loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.functional.masking import loss_weights
from lmpg.runtime.processes import Processes
from lmpg.runtime.seeding import generator
from lmpg.training.diagnostics import Diagnostics
from lmpg.training.old_logprobs import (
    RECOMPUTED,
    OldLogprobs,
    SamplerWeights,
    corrected,
    sampler_metrics,
)
from lmpg.training.optimizer import (
    learning_rate,
    load_optimizer,
    moving,
    policy_optimizer,
    policy_parameters,
    take_step,
)
from lmpg.training.settings import AnyUpdateSettings
from lmpg.types import Algorithm, Credit, Evaluation, Minibatch, Rollout

_NOTHING = torch.zeros(0, dtype=torch.long)
"""The rows of a micro-batch that is computed to keep in step alone."""


class Updater:
    """Holds the optimizer. Weights of the loss are counted over the whole minibatch of all ranks,
    so micro-batches, accumulation and the number of processes never change the result.

    max_length: steps that a row can have at most, for the reduction `fixed_length`.
    old_logprobs: if "update", the log-probs of an optimizer step's own forward stand in place of
    the rollout's. single_steps: the policy has no memory, so each step in the mask becomes a row.
    critic_alone: whether the critic alone takes this iteration's steps. sampler_weights: from the
    log-ratios of π_old and the engine that sampled; None does not tell them apart.
    """

    def __init__(
        self,
        policy: nn.Module,
        settings: AnyUpdateSettings,
        total_steps: int,
        seed: int,
        processes: Processes,
        max_length: int = 1,
        *,
        old_logprobs: OldLogprobs = RECOMPUTED,
        single_steps: bool = False,
        sampler_weights: SamplerWeights | None = None,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self.total_steps = total_steps
        self.seed = seed
        self.processes = processes
        self.max_length = max_length
        self.old_logprobs = old_logprobs
        self.single_steps = single_steps
        self.sampler_weights = sampler_weights
        self.optimizer = policy_optimizer(policy, settings)
        self.limited = not (settings.target_kl is None and settings.target_clip_fraction is None)
        self.critic_alone = False

    def update(
        self, algorithm: Algorithm, rollout: Rollout, credit: Credit, iteration: int
    ) -> dict[str, float]:
        """Improve the policy on the rollout of `iteration` (from 1); returns the metrics."""
        whole = Minibatch.of(rollout, credit)
        if self.single_steps:
            whole = whole.as_steps()
            whole = whole.rows(whole.mask_BT.squeeze(1).nonzero().squeeze(1))
        if self.processes.device.type != "cpu":
            # inputs stay on the host, where lengths can be read without waiting for the device
            moved = replace(whole, inputs={}).to(self.processes.device)
            whole = replace(moved, inputs=whole.inputs)
        rate = learning_rate(self.settings, iteration, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        diagnostics = Diagnostics(self.processes)
        self.critic_alone = iteration <= self.settings.critic_warmup
        for minibatch in self._minibatches(whole, iteration):
            if algorithm.whiten_minibatches:
                minibatch = minibatch.whitened()
            if not self._optimizer_step(algorithm, minibatch, diagnostics):
                break
        sampler = sampler_metrics(whole, self.sampler_weights)
        return {**diagnostics.metrics(), **sampler, "learning_rate": rate}

    def state(self) -> dict[str, Any]:
        """The optimizer's tensors and counters, for a checkpoint."""
        return {"optimizer": self.optimizer.state_dict()["state"]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        load_optimizer(self.optimizer, state["optimizer"])

    def _minibatches(self, whole: Minibatch, iteration: int) -> Iterator[Minibatch]:
        """The minibatches of all epochs; each epoch shuffles the rows anew, unless there is one
        minibatch.

        They are of equal size as far as possible: environments may hand over a few rows more or
        less than asked for, and the last rollout is shorter.
        """
        num_rows = len(whole.mask_BT)
        count = max(1, round(num_rows / self.settings.minibatch_size))
        for epoch in range(self.settings.epochs):
            if count == 1:
                yield whole
                continue
            shuffle = generator(self.seed, "minibatches", iteration, epoch)
            yield from whole.rows(torch.randperm(num_rows, generator=shuffle)).split(count)

    def _optimizer_step(
        self, algorithm: Algorithm, minibatch: Minibatch, diagnostics: Diagnostics
    ) -> bool:
        """Take one optimizer step; returns False, without a step, if the policy has moved far
        enough already."""
        diagnostics.begin_minibatch()
        if self.single_steps:  # all of them chosen, so they weigh the same under every reduction
            weights_BT = _equal_weights(len(minibatch.mask_BT))
        else:
            weights_BT = loss_weights(minibatch.mask_BT, algorithm.reduction, self.max_length)
        of_all = minibatch
        if self.processes.count > 1:  # with fewer rows than processes, some have none
            mine = torch.arange(self.processes.rank, len(weights_BT), self.processes.count)
            minibatch, weights_BT = minibatch.rows(mine), _rows(weights_BT, mine)
        rows, tokens = self.settings.microbatch_size, self.settings.most_tokens
        parts: list[Tensor | None] = [None]  # all at once
        if tokens or not 0 < len(weights_BT) <= rows:
            parts = [*microbatches(minibatch.inputs, rows, tokens)]
        parts = self.processes.in_step(parts, _NOTHING)
        resting = policy_parameters(self.policy) if self.critic_alone else ()
        for number, part in enumerate(parts, start=1):
            with self._sending(number == len(parts), resting):
                if part is _NOTHING:
                    self._keep_in_step(algorithm, of_all)
                    continue
                batch = minibatch if part is None else minibatch.rows(part)
                weights = weights_BT if part is None else _rows(weights_BT, part)
                self._accumulate(algorithm, batch, weights, diagnostics)
        if self.limited and self._gone_far_enough(diagnostics):
            self.optimizer.zero_grad(set_to_none=True)
            diagnostics.add_left_out()
            return False
        norm = take_step(self.optimizer, self.settings, self.processes, resting)
        diagnostics.add_optimizer_step(norm)
        return True

    def _keep_in_step(self, algorithm: Algorithm, minibatch: Minibatch) -> None:
        """A micro-batch that weighs nothing: other ranks have one more than this one."""
        row = minibatch.rows(torch.zeros(1, dtype=torch.long))
        nothing_BT = torch.zeros(row.mask_BT.shape, device=row.mask_BT.device)
        self._accumulate(algorithm, row, nothing_BT, None)

    def _sending(
        self, last: bool, resting: Collection[nn.Parameter]
    ) -> AbstractContextManager[None]:
        """A block in which the gradients of the last micro-batch go out to the other processes as
        they come; not where they may be left out in the end."""
        if not last or self.limited or self.processes.count == 1:
            return nullcontext()
        return self.processes.last_backward(moving(self.optimizer, resting))

    def _gone_far_enough(self, diagnostics: Diagnostics) -> bool:
        """Whether the newest minibatch, before its step, is beyond a limit of the settings."""
        target_kl, most_clipped = self.settings.target_kl, self.settings.target_clip_fraction
        kl, clip_fraction = diagnostics.newest()
        too_far = target_kl is not None and kl > 1.5 * target_kl
        return too_far or (most_clipped is not None and clip_fraction > most_clipped)

    def _accumulate(
        self,
        algorithm: Algorithm,
        batch: Minibatch,
        weights_BT: Tensor,
        diagnostics: Diagnostics | None,
    ) -> None:
        """Forward, loss and backward of one micro-batch; `diagnostics` counts it where given."""
        new, leaves, backward = _detached(self.policy, batch.inputs)
        if self.old_logprobs.source == "update":
            batch = replace(batch, old_logprobs_BT=new.logprobs_BT.detach())
        terms = algorithm.loss_terms(new, batch)
        if self.sampler_weights is not None and batch.sampler_logprobs_BT is not None:
            terms, batch = corrected(terms, batch, self.sampler_weights)
        gradients = _gradients(terms, weights_BT, leaves)
        if diagnostics is not None:
            diagnostics.add(new, batch, terms, weights_BT, gradients)
        total: list[Tensor | None] = [None] * len(leaves)
        for of_term in gradients.values():
            for i, gradient in enumerate(of_term):
                if gradient is not None:
                    known = total[i]
                    total[i] = gradient if known is None else known + gradient
        backward(*total)


def microbatches(inputs: dict[str, Tensor], rows: int, tokens: int = 0) -> list[Tensor]:
    """Indices of the rows [B] of each forward. They change memory and time, never the result.

    A forward has at most `rows` rows and, if `tokens` is not 0, at most so many tokens with
    padding, but one row at least. If inputs say how long their rows are (`…_lengths` [B]), the
    longest come first and rows of like length together; else nothing is padded.
    """
    count = len(next(iter(inputs.values())))
    lengths = [x.cpu() for name, x in inputs.items() if name.endswith("_lengths")]
    if not lengths or not count:
        return list(torch.arange(count).split(rows)) if count else []
    order = torch.stack(lengths).sum(0).argsort(stable=True, descending=True)
    sizes: list[int] = []
    widest: tuple[int, ...] = ()
    for row in zip(*[x[order].tolist() for x in lengths]):
        wider = tuple(map(max, widest, row))
        full = not sizes or sizes[-1] == rows
        if full or (tokens and sum(wider) * (sizes[-1] + 1) > tokens):
            sizes.append(0)
            wider = row
        widest = wider
        sizes[-1] += 1
    return list(order.split(sizes))


def _detached(
    policy: Any, inputs: dict[str, Tensor]
) -> tuple[Evaluation, list[Tensor], Callable[..., None]]:
    """The policy's outputs cut off from its graph, and the way back into it.

    Back-propagation takes two steps: from each term to the outputs, where the clip fraction counts
    the log-probs without gradient, then once from the outputs through the model. Returns the
    detached Evaluation, its tensors as a list, and a function that takes the second step, given
    gradients by (log-probs, entropy, values, divergence), those that there are.
    """
    by_hand = policy.differentiated(inputs) if hasattr(policy, "differentiated") else None
    new, backward = by_hand or (policy.evaluate(inputs), None)
    outputs = {name: x for name, x in vars(new).items() if x is not None}
    leaves = {name: x.detach().requires_grad_() for name, x in outputs.items()}
    back = backward or partial(_backward, list(outputs.values()))
    return Evaluation(**leaves), list(leaves.values()), back


def _backward(outputs: list[Tensor], *gradients: Tensor | None) -> None:
    """Back-propagate the gradients by `outputs` through the model."""
    tensors, known = [], []
    for x, gradient in zip(outputs, gradients):
        if gradient is not None and x.requires_grad:
            tensors.append(x)
            known.append(gradient)
    if tensors:
        torch.autograd.backward(tensors, known)


def _gradients(
    terms: dict[str, Tensor], weights_BT: Tensor, leaves: list[Tensor]
) -> dict[str, list[Tensor | None]]:
    """Per named term, the gradient of Σ term·weight with respect to log-probs, entropy and values.

    Those of `policy`, `entropy` and `value` come from one call, as each depends on one of the three
    alone (see `lmpg.types.Algorithm.loss_terms`). Masked steps weigh nothing, but their terms must
    be finite.
    """
    place = {"policy": 0, "entropy": 1, "value": 2}
    gradients: dict[str, list[Tensor | None]] = {}
    alone: dict[str, Tensor] = {}
    for name, term_BT in terms.items():
        gradients[name] = [None] * len(leaves)
        if name in place and term_BT.requires_grad:  # a constant has no gradient
            alone[name] = term_BT
        elif term_BT.requires_grad:
            found = torch.autograd.grad(
                term_BT, leaves, weights_BT, retain_graph=True, allow_unused=True
            )
            gradients[name] = list(found)
    if alone:
        weights = [weights_BT] * len(alone)
        found = torch.autograd.grad(list(alone.values()), leaves, weights, allow_unused=True)
        for name in alone:
            gradients[name][place[name]] = found[place[name]]
    return gradients


@lru_cache(maxsize=8)
def _equal_weights(count: int) -> Tensor:
    return torch.full((count, 1), 1 / max(1, count))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index.to(x.device))
