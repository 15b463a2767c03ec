"""Metrics of one update.

Buffers per-step tensors and sums them in large batches, because many small sums cost more than one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmpg.functional.kl import k3
from lmpg.runtime.machine import widest
from lmpg.runtime.processes import Processes
from lmpg.types import Evaluation, Minibatch

Columns = dict[str, Tensor]
Gradients = dict[str, list[Tensor | None]]
PENDING = 1 << 16
"""Most steps that are buffered before they are summed."""


class Diagnostics:
    """Sums over the steps in the masks of all micro-batches and ranks; `metrics` divides them.

    A step is clipped when it has an advantage, but its policy term has no gradient.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._pending: dict[str, list[Tensor]] = {}
        self._num_pending = 0
        self._sums: dict[str, Tensor] = {}
        self._largest_ratio: Tensor | None = None
        self._norms: list[float] = []
        self._skipped = 0
        self._left_out = 0
        self._minibatch: list[Columns] = []  # the micro-batches of the newest one

    def begin_minibatch(self) -> None:
        """Micro-batches added from now on form the newest minibatch; a rank may have none of it."""
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
        """Count one micro-batch; gradients: of each term, by log-probs, entropy and values."""
        columns = {
            "mask": batch.mask_BT,
            "new": new.logprobs_BT,
            "old": batch.old_logprobs_BT,
            "advantage": batch.advantages_BT,
            "entropy": new.entropy_BT,
            "weight": weights_BT,
        }
        for name, term_BT in terms.items():
            columns[f"loss/{name}"] = term_BT.detach()
        by_logprobs = gradients["policy"][0] if "policy" in gradients else None
        if by_logprobs is not None:
            columns["policy_gradient"] = by_logprobs
        by_values = gradients["value"][-1] if "value" in gradients else None
        if by_values is not None and batch.old_values_BT is not None:
            columns["off_target"] = torch.ne(new.values_BT, batch.returns_BT)  # type: ignore
            columns["value_gradient"] = by_values
        if self._pending.keys() != columns.keys() or self._num_pending >= PENDING:
            self._sum_pending()
        for name, x in columns.items():
            self._pending.setdefault(name, []).append(x.reshape(-1))
        self._num_pending += batch.mask_BT.numel()
        self._minibatch.append(columns)

    @torch.no_grad()
    def newest(self) -> tuple[float, float]:
        """KL(π_old ‖ π) per step of the newest minibatch, and the share of its steps that are
        clipped, over all ranks. Waits for the device."""
        device = self._processes.device
        sums = torch.zeros(4, dtype=widest(device), device=device)
        for part in self._minibatch:
            seen = _sums(part)
            parts = seen["kl"], seen["steps"], seen["clipped"], seen["with_advantage"]
            sums += torch.stack(parts)
        kl, steps, clipped, with_advantage = self._processes.sum(sums).tolist()
        return kl / max(steps, 1.0), clipped / max(with_advantage, 1.0)

    def add_left_out(self) -> None:
        """Count a minibatch without an optimizer step: the policy had moved far enough already."""
        self._left_out += 1

    def add_optimizer_step(self, gradient_norm: float) -> None:
        """Count one optimizer step. gradient_norm: before clipping, over all parameters; a step is
        skipped if it is not finite."""
        if math.isfinite(gradient_norm):
            self._norms.append(gradient_norm)
        else:
            self._skipped += 1

    def metrics(self) -> dict[str, float]:
        """The update's metrics: means over the steps in the masks of all minibatches and ranks."""
        self._sum_pending()
        sums, largest_ratio = self._over_ranks()
        steps = max(sums["steps"], 1.0)
        minibatches = len(self._norms) + self._skipped + self._left_out
        losses = {k: v / minibatches for k, v in sums.items() if k.startswith("loss/")}
        last_kl, last_clip_fraction = self.newest()
        # without any step the norm is NaN, or 0 if the update ended before its first one
        no_norm = float("nan") if self._skipped else 0.0
        found = {
            "policy/approx_kl": sums["kl"] / steps,
            "policy/last_kl": last_kl,
            "policy/early_stop": float(self._left_out),
            "policy/clip_fraction": sums["clipped"] / max(sums["with_advantage"], 1.0),
            "policy/last_clip_fraction": last_clip_fraction,
            "policy/entropy": sums["entropy"] / steps,
            "policy/ratio_mean": sums["ratio"] / steps,
            "policy/ratio_max": largest_ratio,
            **losses,
            "loss/total": sum(losses.values()),
            "grad_norm": sum(self._norms) / len(self._norms) if self._norms else no_norm,
            "skipped_updates": float(self._skipped),
        }
        if "off_target" in sums:
            found["value/clip_fraction"] = sums["value_clipped"] / max(sums["off_target"], 1.0)
        return found

    @torch.no_grad()
    def _sum_pending(self) -> None:
        """Add the sums of the buffered steps to the totals, and empty the buffer."""
        if not self._pending:
            return
        seen = {name: torch.cat(parts) for name, parts in self._pending.items()}
        for name, sums in _sums(seen).items():
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        largest = _ratios(seen).max()
        known = self._largest_ratio
        self._largest_ratio = largest if known is None else torch.maximum(largest, known)
        self._pending, self._num_pending = {}, 0

    def _over_ranks(self) -> tuple[dict[str, float], float]:
        """The sums and the largest ratio of all ranks; one that had no rows has no sums."""
        largest = 0.0 if self._largest_ratio is None else float(self._largest_ratio)
        names: list[str] = []
        for its_names, its_largest in self._processes.gather_list([(sorted(self._sums), largest)]):
            names = names or its_names
            largest = max(largest, its_largest)
        device = self._processes.device
        zero = torch.zeros((), dtype=widest(device), device=device)
        mine = torch.stack([self._sums.get(name, zero) for name in names])
        return dict(zip(names, self._processes.sum(mine).tolist())), largest


def _ratios(seen: Columns) -> Tensor:
    """π/π_old of each step, 0 outside the mask."""
    return torch.where(seen["mask"], (seen["new"] - seen["old"]).exp(), 0)


def _sums(seen: Columns) -> dict[str, Tensor]:
    """Sums and counts over the steps in the mask, in the device's widest floats;
    `Diagnostics.metrics` divides them by one another."""
    mask, weight = seen["mask"], seen["weight"]
    with_advantage = mask & (seen["advantage"] != 0)
    counted = {"steps": mask, "with_advantage": with_advantage}
    counted["clipped"] = torch.zeros_like(mask)
    if "policy_gradient" in seen:
        counted["clipped"] = with_advantage & (seen["policy_gradient"] == 0)
    if "off_target" in seen:
        counted["off_target"] = mask & seen["off_target"]
        counted["value_clipped"] = counted["off_target"] & (seen["value_gradient"] == 0)
    summed = {
        "kl": torch.where(mask, k3(seen["old"], seen["new"]), 0),
        "ratio": _ratios(seen),
        "entropy": torch.where(mask, seen["entropy"], 0),
    }
    for name in seen:
        if name.startswith("loss/"):
            summed[name] = torch.where(weight > 0, seen[name] * weight, 0)
    wide = widest(mask.device)
    sums = {name: x.sum().to(wide) for name, x in summed.items()}
    return sums | {name: x.count_nonzero().to(wide) for name, x in counted.items()}
