"""Weights that do not learn, kept in bfloat16 and computed with as if they were kept in float32, or
kept in 4 bits (arXiv 2305.14314) and unpacked for each product."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lmpg.runtime.parts import all_say, mine

LOW = torch.bfloat16


def exact_dtype(model: nn.Module) -> torch.dtype:
    """The precision of a checkpoint, by its numbers: bfloat16 where that holds all of them exactly,
    else float32."""
    return LOW if _fits(model, LOW) else torch.float32


def chosen_dtype(setting: str, own: torch.dtype) -> torch.dtype:
    """What `auto`, `fp32` or `bf16` is, of a checkpoint whose `own` precision is known."""
    return {"auto": own, "fp32": torch.float32, "bf16": LOW}[setting]


def saved_dtype(setting: str, own: torch.dtype, model: nn.Module) -> torch.dtype:
    """What `model.final_dtype` is for `model` as it was loaded; own: the `exact_dtype` of its
    checkpoint, which `auto` takes, or float16 where that holds all numbers exactly."""
    if setting == "auto" and own == torch.float32 and _fits(model, torch.float16):
        return torch.float16
    return chosen_dtype(setting, own)


def _fits(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether `dtype` holds all numbers of a model exactly."""
    weights = [p for p in model.parameters() if p.is_floating_point()]
    kept = (mine(p) for p in weights)
    fits = all(p.dtype == dtype or torch.equal(p, p.to(dtype).to(p.dtype)) for p in kept)
    return all_say(bool(weights) and fits, weights)


def keep_frozen(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model` whose weights that do not learn were brought from float32 to `dtype`, one by one."""
    for p in model.parameters():
        if not p.requires_grad and p.dtype == torch.float32:
            p.data = p.data.to(dtype)
    return model


@torch.no_grad()
def rounded_to_bf16(model: nn.Module) -> nn.Module:
    """`model`, still in float32, with the nearest numbers that bfloat16 has: a copy of it that is
    kept in bfloat16, as a reference is, is the same model."""
    for p in model.parameters():
        if p.dtype == torch.float32:
            p.copy_(p.to(LOW))
    return model


def copies_in(dtype: torch.dtype, model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy`, with which the copy of `model` has weights in `dtype` that do not
    learn; none of them exists in float32 a second time."""
    return {
        id(p): nn.Parameter(p.detach().to(dtype, copy=True), requires_grad=False)
        for p in model.parameters()
        if p.is_floating_point()
    }


def is_low(model: nn.Module) -> bool:
    """Whether any weight is kept in bfloat16."""
    return any(p.dtype == LOW for p in model.parameters())


def widened(low: bool) -> AbstractContextManager[Any]:
    """A block that computes with weights kept in bfloat16 as if they were kept in float32; nothing
    where there are none."""
    return _Widened() if low else nullcontext()


class _Widened(TorchFunctionMode):
    """Widens a weight where a function of torch reads it, and only as long as that takes: results,
    in float32 as in autocast, are those of float32 weights, bit for bit."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKS or not any(map(_is_kept, [*args, *kwargs.values()])):
            return func(*args, **kwargs)
        if func in _PARTS:
            return tree_map(_wide, func(*args, **kwargs))
        if func == Tensor.dtype.__get__:  # type: ignore[attr-defined]
            return torch.float32
        if func in _PRODUCTS and torch.is_autocast_enabled(args[0].device.type):
            return func(*args, **kwargs)
        if func is F.linear and torch.is_grad_enabled():
            return _linear(*args, **kwargs)
        return func(*map(_wide_weight, args), **{k: _wide_weight(x) for k, x in kwargs.items()})


def _is_kept(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return any(map(_is_kept, x))
    # an attribute of x is a function of torch, but the mode is off in here
    return isinstance(x, nn.Parameter) and x.dtype == LOW and not x.requires_grad


def _wide(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == LOW else x


def _wide_weight(x: Any) -> Any:
    return tree_map(lambda y: y.float() if _is_kept(y) else y, x)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Cast.apply(x, weight, bias, torch.float32)


def product(linear: Any, x: Tensor) -> Tensor:
    """`linear(x)`, the same numbers in less memory. Autocast would keep its copy of the weight in
    bfloat16 for the backward pass, which makes one for itself here. peft would give each adapter an
    argument of its own, in the adapter's precision, which autocast then takes back."""
    if _has_plain_adapter(linear):
        name: Any = linear.active_adapters[0]
        a, b = linear.lora_A[name], linear.lora_B[name]
        return product(linear.base_layer, x) + product(b, product(a, x)) * linear.scaling[name]
    device = x.device.type
    if type(linear) is not nn.Linear or not torch.is_autocast_enabled(device):
        return linear(x)
    if linear.weight.data.dtype != torch.float32:  # `.dtype` alone is what it is widened to
        return linear(x)
    return _Cast.apply(x, linear.weight, linear.bias, torch.get_autocast_dtype(device))


def _has_plain_adapter(linear: Any) -> bool:
    """Whether it is a linear layer with one low-rank adapter, on, without any extra."""
    if not hasattr(linear, "lora_A") or type(linear).__name__ != "Linear":
        return False
    active = linear.active_adapters
    plain = len(active) == 1 and active[0] in linear.lora_A and not linear.lora_variant
    return plain and not (
        linear.merged
        or linear.disable_adapters
        or type(linear.lora_dropout[active[0]]) is not nn.Identity
    )


class FourBit(nn.Linear):
    """A linear layer whose frozen weight bitsandbytes has packed into 4 bits. Every product, with
    gradients or without, is that of a plain layer with the numbers that these stand for.

    transposed: whether the model has them the other way round, as GPT-2's layers.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, transposed: bool):
        nn.Module.__init__(self)  # nn.Linear's own would draw a weight
        self.out_features, self.in_features = shape_of_weight(weight)
        self.register_parameter("bias", bias)
        self.weight, self.transposed = weight, transposed

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b, in the precision of x or of autocast."""
        device = x.device.type
        rounded = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if rounded else x.dtype
        return _Cast.apply(x, self.weight, self.bias, dtype)


def unpacked(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in `dtype`; one that is packed into 4 bits as what these stand for."""
    packed = getattr(weight, "quant_state", None)
    if packed is None:
        return weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(packed)
    state.dtype = dtype  # the same numbers as those unpacked to float32 and rounded then
    return dequantize_4bit(weight.detach().data, state)


def shape_of_weight(weight: Tensor) -> torch.Size:
    """The shape of what a weight, packed into 4 bits or not, stands for."""
    packed: Any = getattr(weight, "quant_state", None)
    return weight.shape if packed is None else packed.shape


def is_packed(model: nn.Module) -> bool:
    """Whether any layer is kept in 4 bits."""
    return any(isinstance(x, FourBit) for x in model.modules())


def num_weights(model: nn.Module) -> int:
    """How many numbers the model has, however they are kept."""
    return sum(math.prod(shape_of_weight(p)) for p in model.parameters())


class _Cast(torch.autograd.Function):
    """A linear layer in `dtype` that keeps its weight for the backward pass as it is."""

    @staticmethod
    def forward(ctx, x, weight, bias, dtype):
        ctx.dtype, ctx.bias_dtype = dtype, None if bias is None else bias.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, unpacked(weight, dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad[:3]
        rows = grad.flatten(0, -2)
        return (
            grad @ unpacked(weight, ctx.dtype) if by_x else None,
            (rows.T @ x.flatten(0, -2)).to(weight.dtype) if by_weight else None,
            rows.sum(0).to(ctx.bias_dtype) if by_bias else None,
            None,
        )


_LOOKS = {
    *(getattr(Tensor, name).__get__ for name in ("device", "shape", "requires_grad", "is_leaf")),
    *(getattr(Tensor, name).__get__ for name in ("grad", "ndim", "_version", "data", "layout")),
    *(
        Tensor.size,
        Tensor.numel,
        Tensor.dim,
        Tensor.__len__,
        Tensor.data_ptr,
        Tensor.untyped_storage,
    ),
}
"""What is asked of a weight without reading its numbers."""
_PARTS = {
    F.embedding,
    *(getattr(Tensor, name).__get__ for name in ("T", "mT")),
    *(Tensor.__getitem__, Tensor.detach, Tensor.t, Tensor.transpose, Tensor.permute),
    *(Tensor.view, Tensor.chunk, Tensor.split, Tensor.index_select),
}
"""Numbers of a weight in another order, or some of them: fewer are widened after than before."""
_PRODUCTS = {F.linear, torch.addmm, torch.mm, torch.bmm, torch.matmul, Tensor.__matmul__}
"""What autocast brings to its own precision, so that widening first is in vain."""
