"""The precision that a model computes in, and the folders that it is read from and written to."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from lmpg.language.models.forward.kept_weights import copies_in, is_low, widened

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


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """A block in which `model` computes in whole float32, whatever was switched on around it: what
    is compared there differs by what is computed and not by rounding."""
    before, device = torch.get_float32_matmul_precision(), next(model.parameters()).device
    assert torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), widened(is_low(model)):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def quiet() -> Iterator[None]:
    """For the time of a block in which models are written; errors still raise."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with no_progress_bars():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """For the time of a block in which transformers reads or writes many files."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def save_folder(
    folder: Path | str, model: Any, tokenizer: Any, dtype: torch.dtype | None = None
) -> None:
    """Model and tokenizer for `from_pretrained`; weights in `dtype`, or as they are."""
    if dtype is not None and any(p.dtype != dtype for p in model.parameters()):
        model = copy.deepcopy(model, copies_in(dtype, model))
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
