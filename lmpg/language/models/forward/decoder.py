"""A lean forward, with gradients, of the trunks that people train small, over a ragged batch.

It calls the model's own linear layers and reads its own weights, and what it gives is what
transformers gives; the rest (norms, positions, attention, padding) is done in fewer passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Model, LlamaModel, MistralModel, Qwen2Model, Qwen3Model

from lmpg.language.models.forward.attention import Attention
from lmpg.language.models.forward.ops import Rotations, gated, product_dtype, rms_norm
from lmpg.language.models.forward.ragged import Ragged


class LeanForward(ABC):
    """From the tokens of a ragged batch to the hidden states [M, D] of its targets."""

    def __init__(self, trunk: nn.Module) -> None:
        self._trunk: Any = trunk

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._trunk.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return self._trunk.get_input_embeddings().weight.dtype

    @abstractmethod
    def __call__(self, ragged: Ragged) -> Tensor:
        """The last hidden states of the targets, after the last norm."""


def lean_forward(trunk: nn.Module, inputs: dict[str, Tensor]) -> LeanForward | None:
    """The lean forward of a trunk for `inputs`; None for a model that it isn't written for, for
    texts longer than the model's window, and where there is nothing to read."""
    if not inputs["response_lengths"].any():
        return None
    config: Any = getattr(trunk, "config", None)
    if type(trunk) in (LlamaModel, MistralModel, Qwen2Model, Qwen3Model):
        window = getattr(config, "sliding_window", None)
        longest = inputs["prompt_lengths"] + inputs["response_lengths"]
        fits = window is None or int(longest.max()) <= window
        return _Llama(trunk) if fits else None
    plain = type(trunk) is GPT2Model and not config.add_cross_attention
    return _GPT2(trunk) if plain and not config.reorder_and_upcast_attn else None


class _Llama(LeanForward):
    """Llama, Mistral (no windows), Qwen2 (biases), Qwen3 (norms of queries and keys)."""

    def __call__(self, ragged: Ragged) -> Tensor:
        trunk = self._trunk
        x_ND = trunk.embed_tokens(ragged.ids_N)
        config = trunk.config
        heads = (config.num_attention_heads, config.num_key_value_heads)
        cos, sin = trunk.rotary_emb(x_ND, ragged.positions_N[None])
        rotations = Rotations(cos[0], sin[0], heads, trunk.layers[0].self_attn.scaling)
        attention = Attention(ragged, *heads, product_dtype(x_ND))
        last = len(trunk.layers) - 1
        for i, layer in enumerate(trunk.layers):
            taken_ND = self._attended(layer, x_ND, rotations, attention)
            if i == last:  # of what follows, only the targets are read
                taken_ND, x_ND = (x.index_select(0, ragged.target_M) for x in (taken_ND, x_ND))
            x_ND = x_ND + layer.self_attn.o_proj(taken_ND)
            h_ND = rms_norm(x_ND, layer.post_attention_layernorm).to(product_dtype(x_ND))
            x_ND = x_ND + layer.mlp.down_proj(gated(layer.mlp, h_ND))
        return rms_norm(x_ND, trunk.norm)

    def _attended(self, layer: Any, x_ND: Tensor, rotations: Rotations, attention: Attention):
        attn, dtype = layer.self_attn, product_dtype(x_ND)
        h_ND = rms_norm(x_ND, layer.input_layernorm).to(dtype)
        heads = (len(h_ND), -1, attn.head_dim)
        q_NHD, k_NKD = attn.q_proj(h_ND).view(heads), attn.k_proj(h_ND).view(heads)
        v_NKD = attn.v_proj(h_ND).view(heads)
        if hasattr(attn, "q_norm"):
            q_NHD, k_NKD = rms_norm(q_NHD, attn.q_norm), rms_norm(k_NKD, attn.k_norm)
        q_NHD, k_NKD = rotations(q_NHD, k_NKD)
        return attention(q_NHD.to(dtype), k_NKD.to(dtype), v_NKD)


class _GPT2(LeanForward):
    """GPT-2: learned positions, layer norms, biases."""

    def __call__(self, ragged: Ragged) -> Tensor:
        trunk = self._trunk
        x_ND = trunk.wte(ragged.ids_N) + trunk.wpe(ragged.positions_N)
        heads, dtype = trunk.config.num_attention_heads, product_dtype(x_ND)
        attention = Attention(ragged, heads, heads, dtype)
        last = len(trunk.h) - 1
        for i, block in enumerate(trunk.h):
            attn = block.attn
            qkv_N3D = attn.c_attn(_layer_norm(x_ND, block.ln_1, dtype))
            q, k, v = (x.view(len(x), heads, -1) for x in qkv_N3D.chunk(3, 1))
            taken_ND = attention(q * attn.scaling, k, v)
            if i == last:  # of what follows, only the targets are read
                taken_ND, x_ND = (x.index_select(0, ragged.target_M) for x in (taken_ND, x_ND))
            x_ND = x_ND + attn.c_proj(taken_ND)
            mlp = block.mlp
            x_ND = x_ND + mlp.c_proj(mlp.act(mlp.c_fc(_layer_norm(x_ND, block.ln_2, dtype))))
        return _layer_norm(x_ND, trunk.ln_f, x_ND.dtype)


def _layer_norm(x: Tensor, norm: Any, dtype: torch.dtype) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)
