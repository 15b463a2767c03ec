"""What every kind of training steps with: AdamW, its schedule, and a clipped step of all ranks."""

from __future__ import annotations

import math

import torch
from torch import nn

from lmpg.training.processes import Processes
from lmpg.training.quick_steps import clipped, few_and_small, take_step
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


def scheduled(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 1): linear warm-up, then constant, linear or cosine."""
    rate, done = settings.learning_rate, min(1.0, (step - 1) / total_steps)
    if settings.schedule == "linear":
        rate *= 1 - done
    elif settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    return rate * min(1.0, step / settings.warmup_steps) if settings.warmup_steps else rate


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
