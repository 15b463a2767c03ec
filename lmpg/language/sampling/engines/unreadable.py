"""Which layers' weights lmpg's engines cannot read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lmpg.language.models.decoder_parts import is_replaced
from lmpg.language.models.lora import is_lora

_READ_VARIANTS = {"DoraLinearVariant"}
"""Of LoRA layers, as peft calls them."""


def unreadable_layers(model: nn.Module) -> str | None:
    """Which layers' weights cannot be read (quantised, unknown adapters), in words; None if all
    can."""
    unknown = {type(x).__name__ for x in model.modules() if _is_unknown_linear(x)}
    return f"it has layers of type {', '.join(sorted(unknown))}" if unknown else None


def _is_unknown_linear(module: nn.Module) -> bool:
    """A layer that is not what its place in these families is made of (quantised, other adapters);
    only those that hold a weight matrix of their own matter."""
    layer: Any = module
    if is_lora(module):
        variants = {type(x).__name__ for x in layer.lora_variant.values()} - _READ_VARIANTS
        biased = any(layer.lora_bias.values())
        return bool(variants) or biased or type(module).__name__ != "Linear"
    if is_replaced(module):  # what it holds is looked at by itself
        return False
    weight, name = getattr(module, "weight", None), type(module).__name__
    is_matrix = isinstance(weight, Tensor) and weight.dim() >= 2
    return (
        is_matrix and name not in ("Linear", "Conv1D", "FourBit") and not name.endswith("Embedding")
    )
