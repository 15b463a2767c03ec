"""Which precision a model computes in where the user leaves it to the machine."""

from __future__ import annotations

import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)
_PAYS_FROM = 1_000_000
"""Parameters; products of smaller models on a CPU are too small to gain anything."""


def computes_in_bf16(precision: str, model: nn.Module, device: torch.device | str) -> bool:
    """Whether `model` computes in bfloat16; what `auto` chose is logged."""
    if precision != "auto":
        return precision == "bf16"
    device = torch.device(device)
    size = sum(p.numel() for p in model.parameters())
    fast = fast_bf16(device) and (device.type != "cpu" or size >= _PAYS_FROM)
    why = "is fast" if fast else "would gain nothing"
    logger.warning(
        "model.precision = auto is %s: bfloat16 %s for %.1f million parameters on this %s",
        *("bf16" if fast else "fp32", why, size / 1e6, device.type),
    )
    return fast


def fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
