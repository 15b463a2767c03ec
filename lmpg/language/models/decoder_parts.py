"""What a decoder is made of: modules of transformers, which own the weights, and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def is_replaced(module: Any) -> bool:
    """Whether peft trains a copy in the place of the module (`modules_to_save`)."""
    return hasattr(module, "original_module") and hasattr(module, "modules_to_save")


def in_use(module: Any) -> Any:
    """The module itself; where peft trains a copy in its place the copy, but the original while
    adapters are switched off."""
    if not is_replaced(module):
        return module
    if module.disable_adapters:
        return module.original_module
    return module.modules_to_save[module.active_adapters[0]]


@dataclass(frozen=True)
class Norm:
    """An RMS norm, or a layer norm where the module is one; `offset` is added to its weight."""

    module: Any
    offset: float = 0.0

    @property
    def weight(self) -> Tensor:
        """What normalised numbers are multiplied with."""
        return self.module.weight + self.offset if self.offset else self.module.weight

    @property
    def eps(self) -> float:
        """Added to the mean square, or to the variance."""
        module = self.module
        return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps


@dataclass(frozen=True)
class DecoderLayer:
    """One layer: x += post(out(attention(qkv(norm(x))))), then x += post(down(mlp(norm(x)))).

    qkv: three modules, or one with all three's outputs. mlp_in: gate and up, one module with both,
    or one without a gate (`Architecture.gated`). q_norm, k_norm: of each head or of all together,
    whichever their weights are for. rotary: which rotation queries and keys get, "" where there is
    one for all layers, None for none. window: how many tokens a query sees, itself included; None
    for all. scaling: what attention scores are multiplied with. module: the layer of transformers
    that all of them are in.
    """

    module: nn.Module
    attention_norm: Norm | None
    qkv: tuple[nn.Module, ...]
    out: nn.Module
    mlp_norm: Norm | None
    mlp_in: tuple[nn.Module, ...]
    down: nn.Module
    scaling: float
    rotary: str | None = ""
    window: int | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    attention_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None


@dataclass(frozen=True)
class Architecture:
    """A decoder without its head, as modules (which own the weights) and numbers.

    Positions are rotary (a module that gives cosines and sines) or embedded. residual_multiplier:
    of what a layer adds to the stream. attention_softcap: c in c · tanh(score / c).
    """

    embedding: nn.Embedding
    layers: list[DecoderLayer]
    last_norm: Norm
    heads: int
    kv_heads: int
    head_dim: int
    activation: nn.Module
    activation_name: str
    gated: bool = True
    rotary: nn.Module | None = None
    position_embedding: nn.Embedding | None = None
    embedding_scale: float = 1.0
    residual_multiplier: float = 1.0
    attention_softcap: float | None = None

    def rotation(self, kind: str, like: Tensor, positions_N: Tensor) -> Tensor:
        """The rotation `kind` at each position: [N, rotated pairs of a head], complex."""
        assert self.rotary is not None
        cos, sin = self.rotary(like, positions_N[None], *([kind] if kind else []))
        half = cos.shape[2] // 2  # models of transformers give each angle twice
        return torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())

    @property
    def qkv_sizes(self) -> list[int]:
        """Outputs of queries, keys and values."""
        return [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)]
