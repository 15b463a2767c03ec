"""Gradient estimates of all estimators over the same rollouts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmpg.training.microscope.gradient_sketch import GradientSketch
from lmpg.training.microscope.score_weights import score_weights, spanned
from lmpg.types import Algorithm, Rollout


@dataclass
class Estimates:
    """One gradient estimate per rollout and estimator, in sketches.

    sketches: name → one [K] per rollout, float32 where they are sketches, else float64.
    reductions: by name. rows, steps: responses and their steps so far that count. differentiated,
    backwards: rows with a gradient, and passes for it so far; forward_seconds, backward_seconds:
    of theirs.
    """

    sketches: dict[str, list[Tensor]] = field(default_factory=dict)
    reductions: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    steps: int = 0
    differentiated: int = 0
    backwards: int = 0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0

    def unit(self, name: str, max_length: int) -> float:
        """What a reduction leaves to the step size: times this, an estimate is per response."""
        if self.reductions[name] == "fixed_length":
            return float(max_length)
        return self.steps / max(1, self.rows)

    def stacked(self, name: str, max_length: int) -> Tensor:
        """All estimates of an estimator, [N, K], float64, per response."""
        return torch.stack(self.sketches[name]).double() * self.unit(name, max_length)


def estimates(
    policy: Any,
    rollouts: Iterable[Rollout],
    methods: Mapping[str, Algorithm],
    sketch: GradientSketch,
    max_length: int,
) -> Estimates:
    """What `methods` make of each of the rollouts: every estimator sees the same samples.

    policy: the one that sampled (`lmpg.types.Policy`). max_length: steps of a row at most.
    """
    found = Estimates({name: [] for name in methods})
    found.reductions = {name: method.reduction for name, method in methods.items()}
    for rollout in rollouts:
        weights_EBT = torch.stack(
            [score_weights(method, rollout, max_length) for method in methods.values()]
        )
        gradients_EK = _gradients(policy, rollout, weights_EBT, sketch, found)
        for name, gradient_K in zip(methods, gradients_EK):
            found.sketches[name].append(gradient_K if sketch.exact else gradient_K.float())
        counted_BT = rollout.counted_BT
        found.rows += int(counted_BT.any(1).sum())
        found.steps += int(counted_BT.sum())
    return found


def _gradients(
    policy: Any, rollout: Rollout, weights_EBT: Tensor, sketch: GradientSketch, found: Estimates
) -> Tensor:
    """Σ w ∇log π of each estimator's weights, in sketches [E, K]; row by row, so that memory is
    that of one."""
    total_EK = torch.zeros(len(weights_EBT), sketch.width, dtype=torch.float64)
    for b in range(len(rollout.mask_BT)):
        mask_T = rollout.mask_BT[b]
        shares_ER, basis_RT = spanned(weights_EBT[:, b, mask_T])
        if not len(basis_RT):
            continue
        start = time.perf_counter()
        inputs = {name: x[b : b + 1] for name, x in rollout.inputs.items()}
        logprobs_T = policy.evaluate(inputs).logprobs_BT[0]
        logprobs_T = logprobs_T[mask_T.to(logprobs_T.device)]
        done = time.perf_counter()
        found.forward_seconds += done - start
        sketches = []
        for r, direction_T in enumerate(basis_RT.to(logprobs_T)):
            keep = r + 1 < len(basis_RT)
            backward = partial(torch.autograd.backward, logprobs_T, direction_T, retain_graph=keep)
            sketches.append(sketch.of(backward))
        found.backward_seconds += time.perf_counter() - done
        found.differentiated += 1
        found.backwards += len(basis_RT)
        total_EK += shares_ER @ torch.stack(sketches)
    return total_EK
