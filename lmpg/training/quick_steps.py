"""Optimizer steps of small networks: the same kernel as torch's own, without what surrounds it.

Of the time that `clip_grad_norm_` and `AdamW.step` take for a few thousand numbers, nine tenths
are spent on grouping tensors, hooks and profilers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

FEW = 8


def few_and_small(parameters: list[nn.Parameter]) -> bool:
    """Whether these are a small network's, so that calls count and not numbers."""
    return len(parameters) <= FEW and all(
        p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous()
        for p in parameters
    )


def clipped(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to the global norm `max_norm`; returns their norm before that."""
    grads = [p.grad.reshape(-1).numpy() for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(np.dot(grad, grad)) for grad in grads))
    if max_norm < norm < math.inf:
        for grad in grads:
            grad *= max_norm / norm
    return norm


@torch.no_grad()
def take_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`; of AdamW on the CPU by its kernel alone, once it has a state."""
    lists = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    known = all(p in optimizer.state and p.device.type == "cpu" for ps in lists for p in ps)
    if not (known and isinstance(optimizer, torch.optim.AdamW)):
        optimizer.step()
        return
    for group, learned in zip(optimizer.param_groups, lists):
        if not learned:  # the kernel can't do with none
            continue
        states = [optimizer.state[p] for p in learned]
        for state in states:
            state["step"] += 1
        torch._fused_adamw_(
            learned,
            [p.grad for p in learned],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
