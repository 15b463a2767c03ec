"""Weights, gradients and optimizer states shared out over processes, by torch's FSDP2.

Every block of a model is a group, and what lies outside of its blocks is the root's. Each process
keeps a part of each weight. With gradients FSDP's hooks gather a group before it computes and add
up its gradients after; all processes must then compute the same number of times (`in_step`).
Without gradients every process computes as often as it likes (`lmpg.runtime.company`).

Modules that are not shared out go through everything in here as if it were not there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lmpg.runtime.company import Company
from lmpg.runtime.parts import all_whole, mine

_GROUP = "shared_out"
"""Where a module keeps its group."""
_WHOLE = "whole"
"""Where a root keeps what is known of it as a whole."""


@dataclass(frozen=True)
class Sharing:
    """How weights are shared out. mesh: of the processes, the last dimension of which holds a whole
    copy together. reshard: whether a group's weights are let go of between its forward and its
    backward pass. layer_classes: what the blocks' classes must be called; () leaves it open."""

    mesh: Any
    company: Company
    reshard: bool = True
    layer_classes: tuple[str, ...] = ()

    @property
    def shards(self) -> int:
        """How many processes hold a whole copy together."""
        return int(self.mesh.size(self.mesh.ndim - 1))

    def empty(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of any numbers, shared out."""
        from torch.distributed.tensor import Replicate, Shard, empty

        placements = [*[Replicate()] * (self.mesh.ndim - 1), Shard(0)]
        return empty(*size, dtype=dtype, device_mesh=self.mesh, placements=placements)

    def __call__(self, root: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Share out `root` in place, whose weights are whole and the same on every process, or not
        there yet (on `meta`)."""
        from torch.distributed.fsdp import fully_shard

        bare, made = without_weights(root), dict[int, nn.Parameter]()
        for module in [*blocks, root]:
            _make_room(module, self.mesh.device_type, made)
            fully_shard(module, mesh=self.mesh, reshard_after_forward=self.reshard)
        shared: Any
        for shared in [*blocks, root]:
            shared.set_gradient_divide_factor(1.0)  # sums: weights of the loss count all rows
            shared.set_force_sum_reduction_for_comms(True)  # gloo has no other
            shared.set_reduce_scatter_unused_params(True)  # some process may have used them
        shared._get_fsdp_state()._lazy_init()  # the root is that, whatever computes first
        groups = [Group(module, (), self.company).hook() for module in blocks]
        groups.append(Group(root, blocks, self.company))
        root.__dict__[_WHOLE] = Whole(root, bare, groups, self)


class Group:
    """The weights of a module but for those of the groups `within` it, gathered together."""

    def __init__(self, module: nn.Module, within: Sequence[nn.Module], company: Company) -> None:
        others = {id(x) for block in within for x in block.modules()}
        self._module, self._company = module, company
        self.places = [
            (owner, name, p)
            for owner in module.modules()
            if id(owner) not in others
            for name, p in owner._parameters.items()
            if p is not None
        ]
        self._weights = list({id(p): p for _, _, p in self.places}.values())
        self._number = company.number_of(self._gathered)
        self._here = False
        self._called = ExitStack()
        module.__dict__[_GROUP] = self

    def forward(self, function: Callable[..., Any], args: tuple) -> Any:
        """`function(*args)` with the weights, as the module's own forward where it has gradients:
        tensors that these pass must be among the arguments and results."""
        if self._here:
            return function(*args)
        if not torch.is_grad_enabled():
            with self.held():
                return function(*args)
        module: Any = self._module
        module.forward, self._here = partial(_owned, function), True
        try:
            return nn.Module.__call__(module, *args)
        finally:
            self._here = False
            del module.forward

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block without gradients in which the module has its whole weights, new copies."""
        if self._here:
            yield
            return
        self._company.come_to(self._number)
        whole = {
            id(p): nn.Parameter(x, requires_grad=p.requires_grad)
            for p, x in zip(self._weights, self._gathered())
        }
        for owner, name, p in self.places:
            owner._parameters[name] = whole[id(p)]
        del whole
        self._here = True
        try:
            yield
        finally:
            for owner, name, p in self.places:
                owner._parameters[name] = p
            self._here = False

    def hook(self) -> Group:
        """Let the module's own forward hold its weights where it is called without gradients, and
        FSDP do so elsewhere."""
        module = self._module
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, fsdps in hooks.items():
                hooks[key] = partial(_with_gradients_alone, fsdps)
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after, always_call=True)
        return self

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            self._called.enter_context(self.held())

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._called.close()

    @torch.no_grad()
    def _gathered(self) -> list[Tensor]:
        # modes of functions (`kept_weights`) are about what models compute
        with torch._C.DisableTorchFunction():
            return all_whole(self._weights)


@dataclass
class Whole:
    """A root that is shared out, and its like without weights, `bare`."""

    root: nn.Module
    bare: nn.Module
    groups: list[Group]
    sharing: Sharing

    @torch.no_grad()
    def fill(self) -> None:
        """Give `bare` all weights, on the CPU; in a meeting that all processes come to, or will."""
        names = {id(module): name for name, module in self.root.named_modules()}
        for group in self.groups:
            with group.held():
                copies: dict[int, nn.Parameter] = {}
                for owner, name, p in group.places:
                    if id(p) not in copies:
                        known = owner._parameters[name].detach().cpu()  # type: ignore[union-attr]
                        copies[id(p)] = nn.Parameter(known, requires_grad=p.requires_grad)
                    place = self.bare.get_submodule(names[id(owner)])
                    place._parameters[name] = copies[id(p)]

    def empty(self) -> None:
        """Take them away again."""
        self.bare = without_weights(self.bare)


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of a module whose weights are on `meta` and take no memory."""
    weights = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, weights)  # type: ignore[arg-type]


def bare(module: nn.Module) -> Any:
    """The module, or where it is shared out its like without weights, which can be copied."""
    found = module.__dict__.get(_WHOLE)
    return module if found is None else found.bare


def share_out_like(module: nn.Module, blocks: Sequence[nn.Module], other: nn.Module) -> None:
    """Share out `module` if `other` is."""
    if found := other.__dict__.get(_WHOLE):
        found.sharing(module, blocks)


@torch.no_grad()
def copy_weights(module: nn.Module, other: nn.Module) -> None:
    """Give the weights of `module` the numbers of those of `other` with the same names, part by
    part where both are shared out alike."""
    known = dict(other.named_parameters())
    for name, p in module.named_parameters():
        mine(p).copy_(mine(known[name]))


@contextmanager
def whole_copy(module: nn.Module) -> Iterator[Any]:
    """The module, or where it is shared out a copy with all weights, for one process to save; the
    others are at a meeting meanwhile."""
    found = module.__dict__.get(_WHOLE)
    if found is None:
        yield module
        return
    found.fill()
    try:
        yield found.bare
    finally:
        found.empty()


def _make_room(module: nn.Module, device: str, made: dict[int, nn.Parameter]) -> None:
    """Put whole weights of any numbers where there are none yet."""
    for owner in module.modules():
        for name, p in owner._parameters.items():
            if p is not None and p.is_meta:
                if id(p) not in made:
                    room = torch.empty_like(p, device=device)
                    made[id(p)] = nn.Parameter(room, requires_grad=p.requires_grad)
                owner._parameters[name] = made[id(p)]


def as_forward(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, which computes with the weights of `module`, in the place of its forward;
    blocks within it that are shared out hold theirs by themselves."""
    group = module.__dict__.get(_GROUP)
    return function(*args) if group is None else group.forward(function, args)


def is_spread(module: nn.Module) -> bool:
    """Whether a module's weights are shared out."""
    return _GROUP in module.__dict__


def held(module: nn.Module) -> AbstractContextManager[None]:
    """A block in which `module` has its whole weights, but for those of blocks within it, unless it
    computes with gradients. What is kept of them is a copy of the block's own."""
    group = module.__dict__.get(_GROUP)
    return nullcontext() if group is None or torch.is_grad_enabled() else group.held()


def _owned(function: Callable[..., Any], *args: Any) -> Any:
    """The results, none of which is a view: FSDP hangs hooks on them."""
    found = function(*args)
    if isinstance(found, tuple):
        return tuple(map(_own, found))
    return _own(found)


def _own(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) and x._base is not None else x


def _with_gradients_alone(hook: Callable[..., Any], *args: Any) -> Any:
    if not torch.is_grad_enabled():
        return None
    with torch._C.DisableTorchFunction():
        return hook(*args)
