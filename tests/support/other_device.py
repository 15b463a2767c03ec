"""A device that is not the CPU, without its hardware, for whole runs.

Its tensors say that they lie on torch's device `meta`, which has no numbers; these hold theirs on
the CPU. What a GPU would refuse is refused: operations over both devices, and the kinds of numbers
that the device is said to lack. Matrix products may round as TF32 does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from lmpg.language.models import loading
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.rewards import reward_model as reward_models
from lmpg.language.stages import reward_modelling
from lmpg.runtime import machine, processes

aten = torch.ops.aten
DEVICE = torch.device("meta")
COPIES = {aten.copy_.default, aten._to_copy.default}
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default}
AT_ONCE = {aten._conj.default: aten.conj_physical.default, aten._neg_view.default: aten.neg.default}
"""A tensor that is a conjugate by a flag alone would lose it, as the outer tensor has no such."""
TENSOR = torch.tensor
ANSWERS = {aten._local_scalar_dense.default, aten.equal.default}


class Far(Tensor):
    """A tensor on the device; `near` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset()}
        kind = {"dtype": near.dtype, "device": DEVICE}
        return Tensor._make_wrapper_subclass(cls, near.size(), **layout, **kind)

    def __init__(self, near: Tensor):
        self.near = near

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Rules.now.computed(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.near.data_ptr()

    def tolist(self) -> Any:
        return self.near.tolist()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **more: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            made: Tensor = Far(self.near.clone())
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, self.requires_grad)
            memo[id(self)] = made
        return memo[id(self)]

    def __repr__(self, **more: Any) -> str:
        return f"Far({self.near})"


def near(x: Any) -> Any:
    """A tensor of the device as one of the CPU; anything else as it is."""
    return x.near if isinstance(x, Far) else x


class Rules(TorchDispatchMode):
    """While it is on, operations on the device follow these rules.

    lacking: kinds of numbers that the device does not have. tf32: whether its matrix products round
    their factors where torch allows it. refused: what was asked for against the rules. rounded: how
    many products rounded their factors.
    """

    now: Rules

    def __init__(self, lacking: tuple[torch.dtype, ...] = (), tf32: bool = False):
        super().__init__()
        self.lacking, self.tf32 = lacking, tf32
        self.refused: list[str] = []
        self.rounded = 0
        Rules.now = self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.computed(func, args, kwargs or {})

    def computed(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What the operation gives, computed on the CPU."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        far = [x for x in tensors if isinstance(x, Far)]
        self._refuse_both(func, far, tensors)
        asked = kwargs.get("device")
        there = bool(far) if asked is None else torch.device(asked).type == DEVICE.type
        if func is aten.copy_.default:
            there = isinstance(args[0], Far)
        if asked is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        args, kwargs = tree_map(near, args), tree_map(near, kwargs)
        found = AT_ONCE.get(func, func)(*(self._factors(func, args)), **kwargs)
        if func in ANSWERS or not there:
            return found
        known = {id(x.near): x for x in far}  # operations in place return what they were given

        def placed(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if x.dtype in self.lacking:
                self._refuse(f"{func} makes {x.dtype} on the device")
            return known[id(x)] if id(x) in known else Far(x)

        return tree_map(placed, found)

    def _factors(self, func: Any, args: tuple) -> tuple:
        if func not in PRODUCTS or not self.tf32:
            return args
        if torch.get_float32_matmul_precision() == "highest":
            return args
        self.rounded += 1
        return (*args[:-2], *(rounded(x) for x in args[-2:]))

    def _refuse_both(self, func: Any, far: list[Far], tensors: list[Tensor]) -> None:
        """A number of the CPU may join tensors of the device, a tensor may not."""
        others = [tuple(x.shape) for x in tensors if not isinstance(x, Far) and x.dim()]
        if far and others and func not in COPIES:
            self._refuse(f"{func} mixes devices: {others} are on the CPU")

    def _refuse(self, what: str) -> None:
        self.refused.append(what)
        raise TypeError(f"other device: {what}")


def rounded(x: Tensor) -> Tensor:
    """float32 numbers with the 10 bits of TF32's mantissa, to the nearest."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def other_device(monkeypatch: Any, **rules: Any) -> Iterator[Rules]:
    """A block in which lmpg's processes compute on such a device; `rules`: those of `Rules`.

    Models are loaded without it, as transformers uses `meta` itself, and are not saved to `final/`:
    that is transformers' own, which takes what lies on `meta` for missing.
    """
    state = SimpleNamespace(process_index=0, num_processes=1, device=DEVICE)
    monkeypatch.setattr(processes, "PartialState", lambda cpu, **_: state)
    for module in (loading, reward_models):
        for name in ("pretrained_model", "load_sequence_classifier"):
            _outside(monkeypatch, module, name)
    _outside(monkeypatch, reward_modelling, "load_sequence_classifier")
    monkeypatch.setattr(CausalLMPolicy, "save_pretrained", lambda self, folder, tokenizer: None)
    monkeypatch.setattr(reward_modelling, "save_folder", lambda *_: None)
    adam = import_module("torch.optim.adam")  # the kernel is there, but not for `meta`
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    monkeypatch.setattr(torch, "tensor", _tensor)
    monkeypatch.setattr(torch, "autocast", _autocast(torch.autocast))
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda kind="cpu": kind != DEVICE.type and enabled(kind)
    )
    if torch.float64 in rules.get("lacking", ()):
        monkeypatch.setattr(machine, "WITHOUT_FLOAT64", frozenset({DEVICE.type}))
    with Rules(**rules) as mode:
        yield mode


def _outside(monkeypatch: Any, module: Any, name: str) -> None:
    function = getattr(module, name, None)
    if function is None:
        return

    def without(*args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as meanwhile, _disable_current_modes():
            meanwhile.setattr(torch, "tensor", TENSOR)
            return function(*args, **kwargs)

    monkeypatch.setattr(module, name, without)


def _tensor(data: Any, *, dtype: Any = None, device: Any = None, **more: Any) -> Tensor:
    """`torch.tensor`, which asks no dispatch for what is on `meta`."""
    far = device is not None and torch.device(device).type == DEVICE.type
    made = TENSOR(data, dtype=dtype, **more)
    return made.to(DEVICE) if far else made


def _autocast(real: Any) -> Callable[..., Any]:
    def autocast(kind: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if kind == DEVICE.type else real(kind, *args, **kwargs)

    return autocast
