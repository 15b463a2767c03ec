"""The optimizer, its learning rate, and a step on the clipped gradients of all ranks."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import nn

from lmpg.runtime.parts import is_shared_out, mine, spread_as, total_norm
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from lmpg.training.settings import AnyUpdateSettings, OptimizerSettings

CRITIC = ("critic.", "value_head.")  # how the parameters of a policy's critic are called
FEW = 8
"""Most parameter tensors of a small network, where Python calls cost more than arithmetic."""


def new_optimizer(
    parameters: list[nn.Parameter], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The optimizer of `settings`; UserError where its library is not installed."""
    rest: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise UserError(
                "update.optimizer = adamw_8bit needs bitsandbytes, which is not installed: "
                "pip install 'lmpg[bitsandbytes]', or take update.optimizer adafactor"
            ) from None
        return AdamW8bit(parameters, eps=settings.adam_eps, **rest)
    if settings.optimizer == "adafactor":
        from transformers.optimization import Adafactor  # slow to import

        return Adafactor(parameters, scale_parameter=False, relative_step=False, **rest)
    return torch.optim.AdamW(parameters, eps=settings.adam_eps, fused=True, **rest)


def bytes_to_come(optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> int:
    """Bytes that the state of an optimizer will take which has not stepped yet, else 0.

    AdamW keeps two moments of each number, as long as it is; in 8 bits, a byte each. Adafactor
    keeps those of rows and columns, which are no matter.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if optimizer.state or settings.optimizer == "adafactor":
        return 0
    return 2 * sum(
        p.numel() if settings.optimizer == "adamw_8bit" else p.nbytes for p in parameters
    )


def policy_optimizer(policy: nn.Module, settings: AnyUpdateSettings) -> torch.optim.Optimizer:
    """The optimizer of a policy. Each group has a `scale`: its learning rate divided by the
    policy's, which differs from 1 for a critic with a learning rate of its own."""
    named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    optimizer = new_optimizer([p for _, p in named], settings)
    optimizer.param_groups[0]["scale"] = 1.0
    critic = [p for name, p in named if name.startswith(CRITIC)]
    if settings.critic_learning_rate is not None and critic:
        rest = policy_parameters(policy)
        optimizer.param_groups[0]["params"] = rest
        scale = settings.critic_learning_rate / settings.learning_rate
        optimizer.add_param_group({"params": critic, "scale": scale})
    return optimizer


def policy_parameters(policy: nn.Module) -> list[nn.Parameter]:
    """All that learns but the critic; of a shared trunk the critic is the value head alone."""
    named = policy.named_parameters()
    return [p for name, p in named if p.requires_grad and not name.startswith(CRITIC)]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Give the optimizer the states of its parameters, by number, spread as these are."""
    known = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {
        i: {
            name: spread_as(parameters[i], x) if is_shared_out(parameters[i]) and x.shape else x
            for name, x in states.items()
        }
        for i, states in state.items()
    }
    optimizer.load_state_dict({**known, "state": spread})


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 1): linear warm-up, then constant, linear or cosine."""
    rate, done = settings.learning_rate, min(1.0, (step - 1) / total_steps)
    if settings.schedule == "linear":
        rate *= 1 - done
    elif settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    return rate * min(1.0, step / settings.warmup_steps) if settings.warmup_steps else rate


def moving(
    optimizer: torch.optim.Optimizer, resting: Collection[nn.Parameter] = ()
) -> list[nn.Parameter]:
    """The optimizer's parameters but for those that rest."""
    left_out = set(map(id, resting))
    known = [p for group in optimizer.param_groups for p in group["params"]]
    return [p for p in known if id(p) not in left_out]


def take_step(
    optimizer: torch.optim.Optimizer,
    settings: OptimizerSettings,
    processes: Processes,
    resting: Collection[nn.Parameter] = (),
) -> float:
    """Step on the gradients of all ranks, clipped; returns their norm before clipping.

    Gradients that are inf or NaN are dropped without a step. resting: parameters that neither move
    nor count.
    """
    parameters = moving(optimizer, resting)
    for p in resting:
        p.grad = None
    processes.sum_gradients(parameters)
    if len(parameters) <= FEW and all(
        p.device.type == "cpu"
        and p.dtype == torch.float32
        and p.is_contiguous()
        and not is_shared_out(p)
        for p in parameters
    ):
        norm = _clipped(parameters, settings.max_grad_norm)
    else:
        grads = [p.grad for p in parameters if p.grad is not None]
        total = total_norm(grads)
        norm = float(total)
        if norm > settings.max_grad_norm:
            factor = (settings.max_grad_norm / (total + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([mine(x) for x in grads], factor)
    if math.isfinite(norm):
        _step(optimizer)
    for p in parameters:
        p.grad = None
    return norm


def _clipped(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Scales a small network's gradients down to the global norm `max_norm`; returns their norm
    before that. numpy, as `clip_grad_norm_` spends nine tenths of its time on grouping tensors."""
    grads = [p.grad.reshape(-1).numpy() for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(np.dot(grad, grad)) for grad in grads))
    if max_norm < norm < math.inf:
        for grad in grads:
            grad *= max_norm / norm
    return norm


@torch.no_grad()
def _step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`, but AdamW on the CPU calls its kernel directly once it has a state: for a
    small network the hooks and profilers around the kernel cost more than the kernel."""
    learned = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    known = all(p in optimizer.state and p.device.type == "cpu" for p in learned)
    if not (known and isinstance(optimizer, torch.optim.AdamW)):
        optimizer.step()
        return
    for group in optimizer.param_groups:
        learned = [p for p in group["params"] if p.grad is not None]
        if not learned:  # the kernel refuses an empty list
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
