"""What a run's products are computed in: chosen once, kept with its settings, said in its log."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from lmpg.language.models.precision import can_bf16, computes_in_bf16, num_weights
from lmpg.language.models.settings import ModelSettings
from lmpg.runs.folder import RunFolder
from lmpg.runtime.processes import Processes

S = TypeVar("S")


def as_it_began(settings: S, folder: RunFolder, processes: Processes) -> S:
    """The settings with the precision that a resumed run has computed in so far, where they leave
    it to `auto` and the device can compute it."""
    known = folder.settings["model"]["precision"]
    model: Any = settings.model  # type: ignore[attr-defined]
    if model.precision != "auto" or known == "auto":
        return settings
    if known == "bf16" and not can_bf16(processes.device):
        if processes.is_main:
            where = processes.device.type
            print(f"the run began in bf16, which this {where} cannot compute: from here on fp32")
        known = "fp32"
    changed = model.model_copy(update={"precision": known})
    return settings.model_copy(update={"model": changed})  # type: ignore[attr-defined]


def settle(
    asked: str,
    settings: ModelSettings,
    bf16: bool,
    model: nn.Module,
    folder: RunFolder,
    processes: Processes,
) -> dict[str, Any]:
    """Keep with the settings what the run computes in, bf16 or fp32, and return it as facts for the
    summary. Where the user `asked` for auto it is said, one time for all models of the run.

    settings: those that `as_it_began` gave. model: what is trained, and whether it computes in
    `bf16`.
    """
    found = "bf16" if bf16 else "fp32"
    folder.settings["model"]["precision"] = found
    if asked == "auto" and processes.is_main:
        print(_said(found, settings.precision, model, processes.device), flush=True)
    return {"precision": found}


def _said(found: str, began: str, model: nn.Module, device: torch.device) -> str:
    chosen = "bf16" if computes_in_bf16("auto", model, device) else "fp32"
    if found != chosen and began == "auto":
        return f"model.precision = auto is fp32: {type(model).__name__} fails in bfloat16"
    if found != chosen:
        return (
            f"model.precision is {found}, as the run began; auto would take {chosen} on this "
            f"{device.type} (--model.precision {chosen} changes it)"
        )
    why = "is fast" if chosen == "bf16" else "would gain nothing"
    return (
        f"model.precision = auto is {chosen}: bfloat16 {why} for "
        f"{num_weights(model) / 1e6:.1f} million parameters on this {device.type}"
    )
