"""The precision that a model computes in, and the folders that it is read from and written to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from lmpg.language.models.forward.kept_weights import copies_in, is_low, num_weights, widened

_PAYS_FROM = 1_000_000
"""Parameters; products of smaller models on a CPU are too small to gain anything."""


def computes_in_bf16(precision: str, model: nn.Module, device: torch.device | str) -> bool:
    """Whether `model` computes in bfloat16 where `model.precision` is this."""
    if precision != "auto":
        return precision == "bf16"
    device = torch.device(device)
    return fast_bf16(device) and (device.type != "cpu" or num_weights(model) >= _PAYS_FROM)


def can_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices at all, however slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)


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
    device = next(model.parameters()).device
    with exact_products(), torch.autocast(device.type, enabled=False), widened(is_low(model)):
        yield


def allow_tf32(model: nn.Module, allowed: bool) -> None:
    """Let the model's GPU round the factors of this process's fp32 products to TF32, or forbid it.
    Where there is no TF32 nothing is changed."""
    if has_tf32(next(model.parameters()).device):
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
        keep_angles_exact(model)


def has_tf32(device: torch.device) -> bool:
    """Whether it is a GPU of a kind (Ampere or newer) that computes in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def exact_products() -> Iterator[None]:
    """A block in which fp32 products round no factors, as a run is told to elsewhere."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def keep_angles_exact(model: nn.Module) -> None:
    """Where there is TF32, let the model's rotary embeddings multiply position and frequency
    without rounding them: some make that a matrix product, and TF32 knows no 2049."""
    if not has_tf32(next(model.parameters()).device):
        return
    module: Any
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding") and not hasattr(module, "exact"):
            module.exact = ExitStack()
            module.register_forward_pre_hook(_exact_from_here)
            module.register_forward_hook(_as_before, always_call=True)


def _exact_from_here(module: Any, inputs: Any) -> None:
    module.exact.enter_context(exact_products())


def _as_before(module: Any, inputs: Any, output: Any) -> None:
    module.exact.close()


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
