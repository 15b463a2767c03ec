"""The weights of a few well-known families, read into the form that the fused trunk computes with.

Read again at the start of each rollout: they are copies, and an update changes the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmpg.language.sampling.engines.linear import ACTIVATIONS, DenseLinear, PackedLinear, linear

Linear = DenseLinear | PackedLinear


@dataclass(frozen=True)
class Norm:
    """RMS norm, or with a bias layer norm, over the last dimension."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Layer:
    """One block: x += out(attention(qkv(norm(x)))); x += down(activation(gate(norm(x))) [· up]).

    qkv holds all queries' heads, then all keys', then all values'. head_norm_HE: the weight of
    the RMS norm of each query's and key's head. In rotated heads the two numbers that are rotated
    together lie side by side, so that a rotation is a product of complex numbers.
    """

    attention_norm: Norm
    qkv: Linear
    head_norm_HE: Norm | None
    scaling: float
    out: Linear
    mlp_norm: Norm
    gate: Linear
    up: Linear | None
    down: Linear


@dataclass(frozen=True)
class FusedWeights:
    """A whole trunk. rotations [L, head_dim / 2] (complex) or position_embedding [L, D] by
    position; `dtype` is that of products, everything else is float32."""

    embedding: Tensor
    position_embedding: Tensor | None
    rotations: Tensor | None
    layers: list[Layer]
    last_norm: Norm
    activation: str
    num_heads: int
    num_groups: int
    head_dim: int
    dtype: torch.dtype

    @property
    def group_size(self) -> int:
        """Heads of queries that share a head of keys and values."""
        return self.num_heads // self.num_groups

    @property
    def num_positions(self) -> int:
        """Tokens that a context may have."""
        table = self.position_embedding if self.rotations is None else self.rotations
        assert table is not None
        return len(table)


def why_not_fused(model: PreTrainedModel, length: int) -> str | None:
    """What of a model the fused trunk does not know, for contexts of `length`; None if nothing."""
    config: Any = model.config
    if type(model) not in _READERS:
        return f"{type(model).__name__} is none of {', '.join(x.__name__ for x in _READERS)}"
    activation = getattr(config, "hidden_act", None) or config.activation_function
    if activation not in ACTIVATIONS:
        return f"its activation is {activation}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ("default", "linear", "llama3", "yarn"):
        return f"its rope_type is {rope}, which depends on the length"
    window = _window(config)
    if window is not None and window < length:
        return f"its sliding window of {window} is shorter than the context of {length}"
    unknown = {type(x).__name__ for x in model.modules() if _is_unknown_linear(x)}
    return f"it has layers of type {', '.join(sorted(unknown))}" if unknown else None


def fused_weights(model: PreTrainedModel, length: int, dtype: torch.dtype) -> FusedWeights:
    """Copies of the weights as they are now; positions up to `length`."""
    with torch.autocast(model.device.type, enabled=False):
        return _READERS[type(model)](model, length, dtype)


def output_layer(model: PreTrainedModel, dtype: torch.dtype, factor: float) -> Linear:
    """The model's head; its bias, which is not multiplied with the input, times `factor`."""
    head = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias.detach() * factor
    return linear(head.weight.detach().to(dtype), None if bias is None else bias.to(dtype))


def _read_llama(model: Any, length: int, dtype: torch.dtype) -> FusedWeights:
    """Llama and its like: rotary positions, RMS norm, a gated MLP."""
    trunk, config = model.model, model.config
    first = trunk.layers[0].self_attn
    heads = config.num_attention_heads, config.num_key_value_heads
    position = torch.arange(length, device=model.device)[None]
    cos, sin = trunk.rotary_emb(torch.zeros(1, device=model.device), position)
    half = cos.shape[-1] // 2
    return FusedWeights(
        embedding=trunk.embed_tokens.weight.detach(),
        position_embedding=None,
        rotations=torch.complex(cos[0, :, :half], sin[0, :, :half]),
        layers=[_llama_layer(layer, heads, dtype) for layer in trunk.layers],
        last_norm=_norm(trunk.norm),
        activation=config.hidden_act,
        num_heads=heads[0],
        num_groups=heads[1],
        head_dim=first.head_dim,
        dtype=dtype,
    )


def _llama_layer(layer: Any, heads: tuple[int, int], dtype: torch.dtype) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    paired = _paired(attention.head_dim, attention.q_proj.weight.device)
    query, key = (
        [_heads_paired(x, n, paired) for x in _read(module)]
        for module, n in zip((attention.q_proj, attention.k_proj), heads)
    )
    head_norm = None
    if hasattr(attention, "q_norm"):
        norms = [_norm(x, paired) for x in (attention.q_norm, attention.k_norm)]
        weights = [x.weight.expand(n, -1) for x, n in zip(norms, heads)]
        head_norm = Norm(torch.cat(weights), None, norms[0].eps)
    return Layer(
        attention_norm=_norm(layer.input_layernorm),
        qkv=_together([query, key, _read(attention.v_proj)], dtype),
        head_norm_HE=head_norm,
        scaling=attention.scaling,
        out=_together([_read(attention.o_proj)], dtype),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate=_together([_read(mlp.gate_proj)], dtype),
        up=_together([_read(mlp.up_proj)], dtype),
        down=_together([_read(mlp.down_proj)], dtype),
    )


def _read_gpt2(model: Any, length: int, dtype: torch.dtype) -> FusedWeights:
    """GPT-2: learned positions, layer norm, a plain MLP."""
    trunk, config = model.transformer, model.config
    return FusedWeights(
        embedding=trunk.wte.weight.detach(),
        position_embedding=trunk.wpe.weight.detach(),
        rotations=None,
        layers=[_gpt2_layer(block, dtype) for block in trunk.h],
        last_norm=_norm(trunk.ln_f),
        activation=config.activation_function,
        num_heads=config.n_head,
        num_groups=config.n_head,
        head_dim=config.n_embd // config.n_head,
        dtype=dtype,
    )


def _gpt2_layer(block: Any, dtype: torch.dtype) -> Layer:
    return Layer(
        attention_norm=_norm(block.ln_1),
        qkv=_together([_read(block.attn.c_attn)], dtype),
        head_norm_HE=None,
        scaling=block.attn.scaling,
        out=_together([_read(block.attn.c_proj)], dtype),
        mlp_norm=_norm(block.ln_2),
        gate=_together([_read(block.mlp.c_fc)], dtype),
        up=None,
        down=_together([_read(block.mlp.c_proj)], dtype),
    )


_READERS: dict[type, Callable[[Any, int, torch.dtype], FusedWeights]] = {
    transformers.LlamaForCausalLM: _read_llama,
    transformers.MistralForCausalLM: _read_llama,
    transformers.Qwen2ForCausalLM: _read_llama,
    transformers.Qwen3ForCausalLM: _read_llama,
    transformers.GPT2LMHeadModel: _read_gpt2,
}


def _window(config: Any) -> int | None:
    """Tokens that a layer with a sliding window sees; None where every layer sees all."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def _is_unknown_linear(module: nn.Module) -> bool:
    """A layer that is not what its place in these families is made of (quantised, other adapters);
    only those that hold a weight matrix of their own matter."""
    known = ("Linear", "Conv1D", "Embedding")
    if _is_lora(module):
        variants = {**getattr(module, "use_dora", {}), **getattr(module, "lora_variant", {})}
        return any(variants.values()) or type(module).__name__ != "Linear"
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, Tensor) and weight.dim() >= 2
    return is_matrix and type(module).__name__ not in known


def _is_lora(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


def _read(module: Any) -> tuple[Tensor, Tensor | None]:
    """(weight [out, in], bias) of a linear layer, with an adapter that is switched on added."""
    inner = module.base_layer if _is_lora(module) else module
    weight, bias = inner.weight.detach(), inner.bias if hasattr(inner, "bias") else None
    if inner is not module and not module.merged and not module.disable_adapters:
        for name in module.active_adapters:
            if name in module.lora_A:
                weight = weight + module.get_delta_weight(name).detach()
    if isinstance(inner, transformers.pytorch_utils.Conv1D):
        weight = weight.T
    return weight, None if bias is None else bias.detach()


def _together(parts: list, dtype: torch.dtype) -> Linear:
    """One layer whose outputs are those of all `parts` (weight, bias), one after the other."""
    weights = [weight.to(dtype) for weight, _ in parts]
    weight = weights[0] if len(parts) == 1 else torch.cat(weights)
    if all(bias is None for _, bias in parts):
        return linear(weight, None)
    biases = [w.new_zeros(len(w)) if bias is None else bias for w, bias in parts]
    return linear(weight, torch.cat(biases).to(dtype))


def _paired(head_dim: int, device: torch.device) -> Tensor:
    """Order of a head's numbers in which i and i + head_dim / 2 are neighbours."""
    return torch.arange(head_dim, device=device).view(2, -1).T.reshape(-1)


def _heads_paired(x: Tensor | None, num_heads: int, paired: Tensor) -> Tensor | None:
    """Rows of a weight, or the numbers of a bias, with each head's in the order `paired`."""
    if x is None:
        return None
    return x.unflatten(0, (num_heads, -1)).index_select(1, paired).flatten(0, 1)


def _norm(module: Any, order: Tensor | None = None) -> Norm:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    bias = getattr(module, "bias", None)
    weight = module.weight.detach().float()
    weight = weight if order is None else weight.index_select(0, order)
    return Norm(weight, None if bias is None else bias.detach().float(), eps)
