"""What an update did, summed on the device as it happens and reduced once at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from lmpg.functional.kl import k3
from lmpg.training.processes import Processes
from lmpg.types import Evaluation, Minibatch


class Diagnostics:
    """Masked, global sums over all micro-batches of one update; `metrics` divides and names them.

    A step is clipped when it has an advantage and its policy term has no gradient.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._largest_ratio: Tensor | None = None
        self._norms: list[Tensor] = []
        self._skipped = 0
        self._left_out = 0
        self._minibatch: list[Tensor] = []  # the first four sums of the newest one's micro-batches
        self._stepped = False

    @torch.no_grad()
    def add(
        self,
        new: Evaluation,
        batch: Minibatch,
        losses: dict[str, Tensor],
        gradients: dict[str, list[Tensor | None]],
    ) -> None:
        """Count one micro-batch; `gradients` are those of each loss by log-prob, entropy, value."""
        mask = batch.mask_BT
        ratios = torch.where(mask, (new.logprobs_BT - batch.old_logprobs_BT).exp(), 0)
        with_advantage = mask & (batch.advantages_BT != 0)
        policy_gradient = gradients["policy"][0]
        without_gradient = (
            torch.zeros_like(mask) if policy_gradient is None else policy_gradient == 0
        )
        found = {
            "kl": _sum(k3(batch.old_logprobs_BT, new.logprobs_BT), mask),
            "steps": _count(mask),
            "clipped": _count(with_advantage & without_gradient),
            "with_advantage": _count(with_advantage),
            "ratio": ratios.sum(),
            "entropy": _sum(new.entropy_BT, mask),
        }
        if "value" in gradients and batch.old_values_BT is not None:
            value_gradient = gradients["value"][-1]
            off_target = mask & (new.values_BT != batch.returns_BT)
            found["off_target"] = _count(off_target)
            found["value_clipped"] = _count(off_target & (value_gradient == 0))
        found |= {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        sums = torch.stack(list(found.values()))  # float64, as counts are
        names = tuple(found)
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums
        self._minibatch = [] if self._stepped else self._minibatch
        self._minibatch.append(sums[:4])
        self._stepped = False
        largest = ratios.max()
        self._largest_ratio = (
            largest if self._largest_ratio is None else torch.maximum(largest, self._largest_ratio)
        )

    def newest(self) -> tuple[float, float]:
        """KL(π_old ‖ π) per step of the newest minibatch, and the share of its steps that are
        clipped, over all ranks. Waits for the device."""
        zeros = torch.zeros(4, dtype=torch.float64, device=self._processes.device)
        summed = self._processes.sum(torch.stack([zeros, *self._minibatch]).sum(0))
        kl, steps, clipped, with_advantage = summed.tolist()
        return kl / max(steps, 1.0), clipped / max(with_advantage, 1.0)

    def add_left_out(self) -> None:
        """Count a minibatch that no optimizer step was taken on, as the policy had gone far
        enough."""
        self._left_out += 1

    def add_optimizer_step(self, gradient_norm: Tensor, finite: bool) -> None:
        """Count one optimizer step, by the global norm of its gradient before clipping; one whose
        gradient is not finite is not taken."""
        self._stepped = True
        if finite:
            self._norms.append(gradient_norm.detach())
        else:
            self._skipped += 1

    def metrics(self) -> dict[str, float]:
        """Names of design section 9: means over chosen steps of all minibatches and ranks."""
        sums = self._reduced()
        steps = max(sums["steps"], 1.0)
        minibatches = len(self._norms) + self._skipped + self._left_out
        losses = {k: v / minibatches for k, v in sums.items() if k.startswith("loss/")}
        last_kl, last_clip_fraction = self.newest()
        found = {
            "policy/approx_kl": sums["kl"] / steps,
            "policy/last_kl": last_kl,
            "policy/early_stop": float(self._left_out),
            "policy/clip_fraction": sums["clipped"] / max(sums["with_advantage"], 1.0),
            "policy/last_clip_fraction": last_clip_fraction,
            "policy/entropy": sums["entropy"] / steps,
            "policy/ratio_mean": sums["ratio"] / steps,
            "policy/ratio_max": self._global_max(),
            **losses,
            "loss/total": sum(losses.values()),
            "grad_norm": self._mean_norm(),
            "skipped_updates": float(self._skipped),
        }
        if "off_target" in sums:
            found["value/clip_fraction"] = sums["value_clipped"] / max(sums["off_target"], 1.0)
        return found

    def _mean_norm(self) -> float:
        if self._norms:
            return float(torch.stack(self._norms).mean())
        # 0 where the policy had gone far enough before the first step: that is no failure
        return float("nan") if self._skipped else 0.0

    def _reduced(self) -> dict[str, float]:
        zero = torch.zeros((), dtype=torch.float64, device=self._processes.device)
        mine: dict[str, Tensor] = {}
        for names, sums in self._sums.items():
            mine |= {name: mine.get(name, zero) + x for name, x in zip(names, sums)}
        every = sorted({n for names in self._processes.gather_list([list(mine)]) for n in names})
        summed = self._processes.sum(torch.stack([mine.get(name, zero) for name in every]))
        return dict(zip(every, summed.tolist()))

    def _global_max(self) -> float:
        mine = 0.0 if self._largest_ratio is None else float(self._largest_ratio)
        return max(self._processes.gather_list([mine]))


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dtype=torch.float64)


def _sum(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0).sum()
