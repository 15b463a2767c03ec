"""What every kind of training steps with: AdamW, its schedule, and a clipped step of all ranks."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from lmpg.runtime.processes import Processes
from lmpg.training.settings import OptimizerSettings, UpdateSettings

CRITIC = ("critic.", "value_head.")  # how the parameters of a policy's critic are called


def adamw(parameters: list[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """The optimizer of `settings`."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def policy_adamw(policy: nn.Module, settings: UpdateSettings) -> torch.optim.AdamW:
    """The optimizer of a policy; `scale` of a group is its learning rate in that of the others."""
    named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    optimizer = adamw([p for _, p in named], settings)
    optimizer.param_groups[0]["scale"] = 1.0
    critic = [p for name, p in named if name.startswith(CRITIC)]
    if settings.critic_learning_rate is not None and critic:
        rest = [p for name, p in named if not name.startswith(CRITIC)]
        optimizer.param_groups[0]["params"] = rest
        scale = settings.critic_learning_rate / settings.learning_rate
        optimizer.add_param_group({"params": critic, "scale": scale})
    return optimizer


def stepped(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, processes: Processes
) -> float:
    """Step on the gradients of all ranks, clipped; returns their norm before clipping.

    Gradients that are inf or NaN are dropped without a step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    processes.sum_gradients(parameters)
    if few_and_small(parameters):
        norm = clipped(parameters, settings.max_grad_norm)
    else:
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = float(total)
        if norm > settings.max_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, total)
    if math.isfinite(norm):
        take_step(optimizer)
    for p in parameters:
        p.grad = None
    return norm


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
