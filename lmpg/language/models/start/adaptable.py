"""Which linear layers may have an adapter of their own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from lmpg.settings.section import UserError

_PLAIN = ("Linear", "Conv1D", "FourBit")
_MAMBAS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Families whose kernels read the weight of `out_proj` themselves; peft adapts none there."""


def not_adaptable(model: nn.Module) -> list[str]:
    """Names of linear layers but the head that get no adapter unless they are asked for: those that
    compute something else than a product, as routers do; those whose weight another layer has, too,
    so that what two adapters have learned could not be merged into it; and Mamba's `out_proj`."""
    whole: Any = model
    named = dict(model.named_modules())
    linear: dict[str, Any] = {x: m for x, m in named.items() if isinstance(m, nn.Linear | Conv1D)}
    owners = Counter(id(layer.weight) for layer in linear.values())
    mamba = getattr(whole.config, "model_type", None) in _MAMBAS
    return [
        name
        for name, layer in linear.items()
        if layer is not whole.get_output_embeddings()
        and (
            owners[id(layer.weight)] > 1
            or (mamba and name.rpartition(".")[2] == "out_proj")
            or not _is_product(layer)
        )
    ]


@torch.no_grad()
def _is_product(layer: Any) -> bool:
    """Whether it is a linear layer like any other, by its class or by what it computes."""
    if type(layer).__name__ in _PLAIN:
        return True
    x = torch.linspace(-1, 1, layer.in_features).to(layer.weight)[None]
    try:
        found, expected = layer(x).to(x.dtype), F.linear(x, layer.weight, layer.bias)
        rounding = 0.02 * float(expected.abs().max())  # of weights that are kept in bfloat16
        return found.shape == expected.shape and torch.allclose(found, expected, atol=rounding)
    except Exception:  # what goes in or comes out is of another kind
        return False


def refuse_shared_weights(model: nn.Module, what: str) -> None:
    """UserError where adapters, which `what` has asked for, lie over one weight of several layers:
    each learns for its own layer, and merged all would act in every one of them."""
    seen: dict[int, str] = {}
    module: Any
    for name, module in model.named_modules():
        if not (hasattr(module, "lora_A") and hasattr(module, "get_base_layer")):
            continue
        base = module.get_base_layer()
        weight = getattr(base, getattr(module, "parameter_name", "weight"), None)
        if weight is not None and (other := seen.setdefault(id(weight), name)) != name:
            raise UserError(
                f"{what} adapts {other} and {name}, which share one weight, so that what both "
                "learn could not be merged into it, expected layers with weights of their own; "
                "leave them out"
            )
