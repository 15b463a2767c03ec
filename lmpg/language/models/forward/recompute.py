"""Gradient checkpointing (arXiv 1604.06174): a layer's inner results are not kept for the backward
pass, which computes them again, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from lmpg.language.models.architectures import READERS
from lmpg.language.models.forward.kept_weights import is_low, widened
from lmpg.settings.section import UserError


def recompute_layers(trunk: Any) -> None:
    """From now on the backward pass through `trunk` computes its layers again; UserError where
    they are not known."""
    if type(trunk) not in READERS and not layers_of(trunk):
        raise UserError(
            f"model.gradient_checkpointing is True, but the layers of {type(trunk).__name__} are "
            "none that transformers can compute again, expected a model with layers of its class "
            "GradientCheckpointingLayer; leave it out, or set a smaller update.microbatch_size"
        )
    trunk.recomputes_layers = True


def is_set_to_recompute(trunk: Any) -> bool:
    """Whether `recompute_layers` was called for it."""
    return getattr(trunk, "recomputes_layers", False)


def recomputes(trunk: Any) -> bool:
    """Whether the forward that follows leaves its layers to the backward pass."""
    return is_set_to_recompute(trunk) and torch.is_grad_enabled()


def recomputed(trunk: Any, layer: Callable, *given: Any, **named: Any) -> Any:
    """`layer(*given, **named)`, of which only the arguments are kept. The backward pass computes it
    again under the conditions of now: autocast (by torch), kept weights, kind of attention."""
    attention = getattr(trunk.config, "_attn_implementation", None)
    again = partial(_conditions, trunk, attention)
    return checkpoint(
        layer,
        *given,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in here is random: models stay in eval mode
        context_fn=lambda: (nullcontext(), again()),
        **named,
    )


@contextmanager
def layers_recomputed(trunk: Any) -> Iterator[None]:
    """A block in which the own forward of a trunk that recomputes leaves its layers to the backward
    pass. transformers would do so in training mode only, which switches dropout on."""
    layers = layers_of(trunk) if recomputes(trunk) else []
    for layer in layers:
        layer.forward = partial(recomputed, trunk, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def _conditions(trunk: Any, attention: str | None) -> Iterator[None]:
    config, now = trunk.config, getattr(trunk.config, "_attn_implementation", None)
    if attention != now:
        config._attn_implementation = attention
    try:
        with widened(is_low(trunk)):
            yield
    finally:
        if attention != now:
            config._attn_implementation = now


def layers_of(trunk: nn.Module) -> list[Any]:
    """The layers of a model that transformers can compute again, or gather, one by one."""
    return [x for x in trunk.modules() if isinstance(x, GradientCheckpointingLayer)]
