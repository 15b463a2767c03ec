"""What an update did: kept as it happens, summed many micro-batches at once, told at the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmpg.functional.kl import k3
from lmpg.runtime.processes import Processes
from lmpg.types import Evaluation, Minibatch

Columns = dict[str, Tensor]
Gradients = dict[str, list[Tensor | None]]
PENDING = 1 << 16
"""Steps that are kept at most before they are summed: sums of few numbers cost their calls."""


class Diagnostics:
    """Masked, global sums over all micro-batches of one update; `metrics` divides and names them.

    A step is clipped when it has an advantage and its policy term has no gradient.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._pending: list[Columns] = []
        self._num_pending = 0
        self._sums: dict[str, Tensor] = {}
        self._largest_ratio: Tensor | None = None
        self._norms: list[float] = []
        self._skipped = 0
        self._left_out = 0
        self._minibatch: list[Columns] = []  # the micro-batches of the newest one

    def begin_minibatch(self) -> None:
        """What is added from now on is the newest minibatch, of which this rank may have no row."""
        self._minibatch = []

    @torch.no_grad()
    def add(
        self,
        new: Evaluation,
        batch: Minibatch,
        terms: dict[str, Tensor],
        weights_BT: Tensor,
        gradients: Gradients,
    ) -> None:
        """Count one micro-batch; `gradients` are those of each term by log-prob, entropy, value."""
        known = _columns(new, batch, weights_BT, gradients)
        known |= {f"loss/{name}": term_BT.detach() for name, term_BT in terms.items()}
        other = self._pending and self._pending[0].keys() != known.keys()
        if other or self._num_pending >= PENDING:
            self._sum_up()
        self._pending.append(known)
        self._num_pending += batch.mask_BT.numel()
        self._minibatch.append(known)

    @torch.no_grad()
    def newest(self) -> tuple[float, float]:
        """KL(π_old ‖ π) per step of the newest minibatch, and the share of its steps that are
        clipped, over all ranks. Waits for the device."""
        sums = torch.zeros(4, dtype=torch.float64, device=self._processes.device)
        for part in self._minibatch:
            seen = _sums(part)
            sums += torch.stack([seen[x] for x in ("kl", "steps", "clipped", "with_advantage")])
        kl, steps, clipped, with_advantage = self._processes.sum(sums).tolist()
        return kl / max(steps, 1.0), clipped / max(with_advantage, 1.0)

    def add_left_out(self) -> None:
        """Count a minibatch that no optimizer step was taken on, as the policy had gone far
        enough."""
        self._left_out += 1

    def add_optimizer_step(self, gradient_norm: float) -> None:
        """Count one optimizer step, by the global norm of its gradient before clipping; one whose
        gradient is not finite is not taken."""
        if math.isfinite(gradient_norm):
            self._norms.append(gradient_norm)
        else:
            self._skipped += 1

    def metrics(self) -> dict[str, float]:
        """Names of design section 9: means over chosen steps of all minibatches and ranks."""
        self._sum_up()
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
            return sum(self._norms) / len(self._norms)
        # 0 where the policy had gone far enough before the first step: that is no failure
        return float("nan") if self._skipped else 0.0

    @torch.no_grad()
    def _sum_up(self) -> None:
        """Sum what is pending and let go of it."""
        if not self._pending:
            return
        seen = _joined(self._pending)
        for name, sums in _sums(seen).items():
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        largest = _ratios(seen).max()
        known = self._largest_ratio
        self._largest_ratio = largest if known is None else torch.maximum(largest, known)
        self._pending, self._num_pending = [], 0

    def _reduced(self) -> dict[str, float]:
        zero = torch.zeros((), dtype=torch.float64, device=self._processes.device)
        mine = self._sums
        every = sorted({n for names in self._processes.gather_list([list(mine)]) for n in names})
        summed = self._processes.sum(torch.stack([mine.get(name, zero) for name in every]))
        return dict(zip(every, summed.tolist()))

    def _global_max(self) -> float:
        mine = 0.0 if self._largest_ratio is None else float(self._largest_ratio)
        return max(self._processes.gather_list([mine]))


def _columns(
    new: Evaluation, batch: Minibatch, weights_BT: Tensor, gradients: Gradients
) -> Columns:
    found = {
        "mask": batch.mask_BT,
        "new": new.logprobs_BT,
        "old": batch.old_logprobs_BT,
        "advantage": batch.advantages_BT,
        "entropy": new.entropy_BT,
        "weight": weights_BT,
        "policy_gradient": gradients["policy"][0],
    }
    if "value" in gradients and batch.old_values_BT is not None:
        found["off_target"] = torch.ne(new.values_BT, batch.returns_BT)  # type: ignore[arg-type]
        found["value_gradient"] = gradients["value"][-1]
    return {name: x for name, x in found.items() if x is not None}


def _joined(parts: list[Columns]) -> Columns:
    """All steps of some micro-batches, one after the other."""
    return {name: torch.cat([part[name].reshape(-1) for part in parts]) for name in parts[0]}


def _ratios(seen: Columns) -> Tensor:
    return torch.where(seen["mask"], (seen["new"] - seen["old"]).exp(), 0)


def _sums(seen: Columns) -> dict[str, Tensor]:
    """What `Diagnostics.metrics` divides by one another, in float64 to add up further."""
    mask = seen["mask"]
    with_advantage = mask & (seen["advantage"] != 0)
    found = {
        "kl": _sum(k3(seen["old"], seen["new"]), mask),
        "steps": _count(mask),
        "ratio": _ratios(seen).sum().double(),
        "entropy": _sum(seen["entropy"], mask),
        "with_advantage": _count(with_advantage),
        "clipped": torch.zeros((), dtype=torch.float64, device=mask.device),
    }
    if "policy_gradient" in seen:
        found["clipped"] = _count(with_advantage & (seen["policy_gradient"] == 0))
    if "off_target" in seen:
        off_target = mask & seen["off_target"]
        found["off_target"] = _count(off_target)
        found["value_clipped"] = _count(off_target & (seen["value_gradient"] == 0))
    losses = [name for name in seen if name.startswith("loss/")]
    weight = seen["weight"]
    return found | {name: _sum(seen[name] * weight, weight > 0) for name in losses}


def _count(mask: Tensor) -> Tensor:
    return mask.count_nonzero().double()


def _sum(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0).sum().double()
