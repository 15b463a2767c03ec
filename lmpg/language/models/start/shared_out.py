"""Models whose weights are shared out over processes, layer by layer."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from lmpg.language.models.forward.kept_weights import is_packed
from lmpg.language.models.forward.recompute import layers_of
from lmpg.runtime.processes import Processes
from lmpg.runtime.sharding import copy_weights, is_spread, share_out_like
from lmpg.settings.section import UserError

M = TypeVar("M", bound=nn.Module)


def shared_out(module: M, processes: Processes) -> M:
    """The module, whose weights are shared out where the processes do so; UserError where it cannot
    be divided."""
    if processes.sharing is not None:
        processes.sharing(module, _blocks(module))
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


def _blocks(module: Any) -> list[nn.Module]:
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
    return blocks
