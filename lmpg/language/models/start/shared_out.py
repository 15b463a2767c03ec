"""Models whose weights are shared out over processes, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from lmpg.language.models.forward.kept_weights import is_packed
from lmpg.language.models.forward.recompute import layers_of
from lmpg.runtime.processes import Processes
from lmpg.runtime.sharding import copy_weights, is_spread, share_out_like
from lmpg.settings.section import UserError

M = TypeVar("M", bound=nn.Module)


def loaded(load: Callable[..., M], processes: Processes) -> M:
    """The model that `load` makes, where it is to compute: told not to move it there (`moved`), its
    weights are shared out where the processes do so. UserError where it cannot be divided."""
    sharing = processes.sharing
    with processes.in_turn():
        module = load(moved=sharing is None)
        if sharing is not None:
            sharing(module, _blocks(module, sharing.layer_classes))
    return module


def shared_out_like(module: M, other: nn.Module) -> M:
    """The module, whose weights are shared out where those of `other` are."""
    share_out_like(module, layers_of(module), other)
    return module


def copy_of(made: M, other: nn.Module) -> M:
    """`made`, a copy of `other` or of a part, which is shared out, with its numbers, where that
    is."""
    if is_spread(other):
        copy_weights(shared_out_like(made, other), other)
    return made


def _blocks(module: Any, classes: tuple[str, ...]) -> list[nn.Module]:
    if is_packed(module):
        raise UserError(
            "model.quantisation = nf4 with run.sharding: weights in 4 bits cannot be shared out. "
            "Leave model.quantisation out, or set run.sharding to none"
        )
    blocks = layers_of(module)
    if not blocks:
        model = type(getattr(module, "causal_lm", module)).__name__
        raise UserError(
            f"run.sharding with model.path: the layers of {model} are not known, expected a model "
            "with layers of transformers' class GradientCheckpointingLayer; set run.sharding to "
            "none"
        )
    found = sorted({type(block).__name__ for block in blocks})
    if unknown := set(classes) - set(found):
        raise UserError(
            f"fsdp_transformer_layer_cls_to_wrap = {', '.join(sorted(unknown))}, but the layers of "
            f"this model are {', '.join(found)}: expected these; remove it, as they are found"
        )
    return blocks
