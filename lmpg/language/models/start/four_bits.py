"""A frozen base in 4 bits (QLoRA, arXiv 2305.14314): packed by bitsandbytes through transformers,
unpacked by lmpg, the same in training, sampling and reference.

bitsandbytes' own forward is not used: on some processors it packs weights anew where gradients are
off, and computes otherwise from then on.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lmpg.language.models.forward.kept_weights import FourBit, is_packed, unpacked
from lmpg.settings.section import UserError


def arguments_for(quantisation: str) -> dict[str, Any]:
    """What `from_pretrained` is told for a setting `model.quantisation`; UserError without
    bitsandbytes."""
    if quantisation == "none":
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            f"model.quantisation = {quantisation} needs bitsandbytes, which is not installed: "
            "pip install 'lmpg[bitsandbytes]', or leave model.quantisation out"
        ) from None
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantisation)
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def unpack_in_each_product(place: str, model: PreTrainedModel, quantisation: str) -> None:
    """Replaces the layers that transformers has packed, or a checkpoint brings packed, by those of
    lmpg; the rest of the model takes itself for a plain one then. UserError where none is packed,
    but was to be. place: where the model comes from."""
    packed: dict[str, Any] = {
        name: x for name, x in model.named_modules() if type(x).__name__ == "Linear4bit"
    }
    if not packed and quantisation != "none":
        raise UserError(
            f"model.quantisation = {quantisation}: {place} has no linear layers to be kept in 4 "
            "bits, expected a model that is not quantised otherwise, with plain linear layers; "
            "leave model.quantisation out"
        )
    for name, x in packed.items():
        if getattr(x.weight, "quant_state", None) is None:
            raise UserError(
                f"{place}: its config.json says that its weights are in 4 bits (bitsandbytes), but "
                f"{name}.weight is not, expected both or neither; take quantization_config out of "
                "config.json (model.quantisation = nf4 packs a plain model)"
            )
        x.weight.module = None
        x.weight.data = x.weight.data.view(torch.uint8)
        model.set_submodule(name, FourBit(x.weight, x.bias, issubclass(x.source_cls, Conv1D)))
    whole: Any = model
    if packed and whole.hf_quantizer is not None:
        whole.hf_quantizer.remove_quantization_config(model)
        whole.hf_quantizer, whole.is_loaded_in_4bit = None, False
        whole._weight_conversions = [
            x for x in getattr(whole, "_weight_conversions", None) or () if not _packs(x)
        ]


def _packs(conversion: Any) -> bool:
    """Whether transformers packed or read packed weights so: it would try to undo that, and cannot,
    where it saves the plain model."""
    return any(type(x).__name__.startswith("Bnb") for x in getattr(conversion, "operations", ()))


def refuse_packed(model: nn.Module, what: str, fix: str) -> None:
    """UserError where a model that is to learn as a whole has layers in 4 bits."""
    if is_packed(model):
        raise UserError(
            f"{what} would be trained as a whole, but has weights in 4 bits (model.quantisation), "
            f"which cannot learn, expected others; {fix}"
        )


def plain_layers(model: nn.Module, dtype: torch.dtype) -> dict[int, Any]:
    """A memo for `copy.deepcopy`, with which the copy of `model` has plain layers in `dtype` where
    it has packed ones, with their adapters added in float32."""
    found: dict[int, Any] = {}
    inner = set()
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, FourBit):
            inner.add(id(base))
            adapted: Any = copy.deepcopy(module, {id(base): _plain(base)})
            adapted.merge()
            found[id(module)] = _turned(adapted.get_base_layer(), base.transposed).to(dtype)
        elif isinstance(module, FourBit) and id(module) not in inner:
            found[id(module)] = _turned(_plain(module), module.transposed).to(dtype)
    return found


def _plain(layer: FourBit) -> nn.Linear:
    """A plain layer in float32."""
    plain = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(unpacked(layer.weight, torch.float32), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float().clone(), requires_grad=False)
    return plain


def _turned(layer: nn.Linear, transposed: bool) -> nn.Module:
    """The layer as its model has it."""
    if not transposed:
        return layer
    turned = Conv1D(layer.out_features, layer.in_features)
    turned.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
    turned.bias = layer.bias
    return turned
