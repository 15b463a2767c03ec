"""The families of decoders that lmpg computes itself: one reader each.

A reader turns a trunk of transformers into modules and numbers. The training forward, the decode
engines, packing and the head ask here, and know no family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor

from lmpg.language.models.decoder_parts import Architecture, DecoderLayer, Norm, in_use

TOLERANCE = 1e-3
"""Largest `deviation` of lmpg's hidden states from those of transformers, in float32."""
NATS = 1e-3
"""Largest difference of a single log-prob in float32; a ratio of policies feels no other."""
_TANH_GELU = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "relu": F.relu,
}
"""By name in a config; all that the decode engines know."""
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
_UNKNOWN = ("add_cross_attention", "reorder_and_upcast_attn", "use_bidirectional_attention")


def trunk_of(model: Any) -> Any:
    """A model without its output layer; a trunk is its own. Llama 4 says that its trunk is the
    whole model."""
    trunk = getattr(model, "base_model", model)
    return getattr(model, "model", model) if trunk is model else trunk


def architecture(model: Any) -> Architecture:
    """What the reader of a model's family finds; ask `unsupported` first."""
    trunk = trunk_of(model)
    return READERS[type(trunk)](trunk)


def unsupported(model: Any, length: int) -> str | None:
    """Why lmpg leaves texts of `length` tokens to the model's own forward; None if it need not."""
    trunk = trunk_of(model)
    if type(trunk) not in READERS:
        return f"{type(trunk).__name__} is none of {', '.join(x.__name__ for x in READERS)}"
    config = trunk.config
    unknown = [name for name in _UNKNOWN if getattr(config, name, False)]
    if unknown:
        return f"its config has {unknown[0]}"
    if _activation_name(config) not in ACTIVATIONS:
        return f"its activation is {_activation_name(config)}"
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [x for x in rope.values() if isinstance(x, dict)] or [rope]:
        kind = parameters.get("rope_type", "default")
        short = kind == "longrope" and length <= parameters["original_max_position_embeddings"]
        if kind not in _FIXED_ROTATIONS and not short:
            return f"its rope_type is {kind}, which depends on the length"
    return None


def sliding_window(config: Any, layer: int) -> int | None:
    """How many tokens layer number `layer` sees, the newest included; None for all. A list of
    `layer_types` decides where a config has one."""
    kinds = getattr(config, "layer_types", None)
    used = getattr(config, "use_sliding_window", True)
    if kinds is not None:
        used = kinds[layer] == "sliding_attention"
    return getattr(config, "sliding_window", None) if used else None


def unknown_layers(config: Any) -> list[str]:
    """Kinds of layers in a config's `layer_types` that are not attention, whole or sliding."""
    kinds = set(getattr(config, "layer_types", None) or ())
    return sorted(kinds - {"full_attention", "sliding_attention"})


def has_experts(config: Any) -> bool:
    """Whether a router chooses between experts."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(config.get_text_config(), name, None) or 0) > 1 for name in names)


def logit_scale_and_softcap(config: Any) -> tuple[float, float | None]:
    """What Cohere, Falcon-H1 (factors), Granite, Inkling (divisors), Gemma, RecurrentGemma and
    xLSTM (softcaps) do to logits."""
    config = config.get_text_config()
    scale = 1.0
    for factor in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(config, factor, None) or 1.0
    for divisor in ("logits_scaling", "logits_mup_width_multiplier"):
        scale /= getattr(config, divisor, None) or 1.0
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return scale, next((x for name in caps if (x := getattr(config, name, None))), None)


def probe_ids(model: Any, rows: int, length: int) -> Tensor:
    """Token ids [rows, length], spread over the vocabulary, on which lmpg's computation is compared
    with another before it is trusted."""
    ids = torch.arange(1, rows * length + 1).view(rows, length)
    known = len(model.get_input_embeddings().weight)  # some embed more than they have logits for
    return ids * 7919 % min(known, getattr(model.config.get_text_config(), "vocab_size", known))


@torch.no_grad()
def deviation(ours: Tensor, theirs: Tensor) -> float:
    """How far `ours` is from `theirs`, as a share of their size."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _activation_name(config: Any) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function")
    return next((getattr(config, name) for name in names if getattr(config, name, None)), "none")


Names = dict[str, str | tuple[str, ...]]
"""Where in a layer of transformers the parts of a `DecoderLayer` are."""

LLAMA: Names = {
    "attention_norm": "input_layernorm",
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "scaling": "self_attn.scaling",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "down": "mlp.down_proj",
}
_HEAD_NORMS: Names = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_POST_NORMS: Names = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GEMMA: Names = LLAMA | _POST_NORMS | {"mlp_norm": "pre_feedforward_layernorm"}
_OLMO2: Names = LLAMA | _POST_NORMS | _HEAD_NORMS | {"attention_norm": "", "mlp_norm": ""}
_PHI3: Names = LLAMA | {"qkv": ("self_attn.qkv_proj",), "mlp_in": ("mlp.gate_up_proj",)}


def rotary_decoder(
    trunk: Any,
    names: Names = LLAMA,
    *,
    activation: str = "act_fn",
    windows: bool = False,
    rotary: Sequence[str | None] | None = None,
    norm_offset: float = 0.0,
    **numbers: Any,
) -> Architecture:
    """A trunk whose parts outside its layers have the names that most families share.

    activation: its name in an MLP. windows: whether layers may have sliding ones. rotary: of each
    layer. norm_offset: of all norms. numbers: other fields of an `Architecture`.
    """
    config, layers = trunk.config, []
    for i, layer in enumerate(trunk.layers):
        window = sliding_window(config, i) if windows else None
        kind = "" if rotary is None else rotary[i]
        layers.append(_layer(layer, names, norm_offset, window=window, rotary=kind))
    return Architecture(
        embedding=in_use(trunk.embed_tokens),
        layers=layers,
        last_norm=Norm(in_use(trunk.norm), norm_offset),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=trunk.layers[0].self_attn.head_dim,
        activation=getattr(trunk.layers[0].mlp, activation),
        activation_name=_activation_name(config),
        rotary=trunk.rotary_emb,
        **numbers,
    )


def _layer(layer: Any, names: Names, norm_offset: float = 0.0, **numbers: Any) -> DecoderLayer:
    def found(part: str, path: str) -> Any:
        if not path:
            return None
        x = in_use(attrgetter(path)(layer))
        return Norm(x, norm_offset) if part.endswith("norm") else x

    parts: dict[str, Any] = {
        part: found(part, x) if isinstance(x, str) else tuple(found(part, one) for one in x)
        for part, x in names.items()
    }
    return DecoderLayer(module=layer, **parts, **numbers)


def _llama(trunk: Any) -> Architecture:
    """Llama: rotary positions, RMS norms before attention and before a gated MLP."""
    return rotary_decoder(trunk)


def _mistral(trunk: Any) -> Architecture:
    """Mistral, and Qwen2 (with biases): Llama with sliding windows."""
    return rotary_decoder(trunk, windows=True)


def _qwen3(trunk: Any) -> Architecture:
    """Qwen3: Qwen2 with norms of each head's query and key."""
    return rotary_decoder(trunk, LLAMA | _HEAD_NORMS, windows=True)


def _smollm3(trunk: Any) -> Architecture:
    """SmolLM3: Llama with layers that know no positions, and with sliding windows."""
    rotary = ["" if layer.self_attn.use_rope else None for layer in trunk.layers]
    return rotary_decoder(trunk, windows=True, rotary=rotary)


def _granite(trunk: Any) -> Architecture:
    """Granite: Llama with a factor for the embedding and one for what each layer adds."""
    scale, factor = trunk.embedding_multiplier, trunk.config.residual_multiplier
    return rotary_decoder(trunk, embedding_scale=scale, residual_multiplier=factor)


def _phi3(trunk: Any) -> Architecture:
    """Phi-3: one module for q, k and v, one for gate and up; some sizes rotate a part of a head."""
    return rotary_decoder(trunk, _PHI3, activation="activation_fn", windows=True)


def _olmo2(trunk: Any) -> Architecture:
    """OLMo 2: norms after attention and MLP instead of before, and norms of q and k as a whole."""
    return rotary_decoder(trunk, _OLMO2)


def _gemma2(trunk: Any) -> Architecture:
    """Gemma 2: norms (weight + 1) before and after, scaled embeddings, capped attention scores."""
    return _gemma(trunk, _GEMMA, attention_softcap=trunk.config.attn_logit_softcapping)


def _gemma3(trunk: Any) -> Architecture:
    """Gemma 3: norms of q and k, no cap of scores; layers with a window have their own rotation."""
    return _gemma(trunk, _GEMMA | _HEAD_NORMS, rotary=trunk.config.layer_types)


def _gemma(trunk: Any, names: Names, **numbers: Any) -> Architecture:
    scale = trunk.embed_tokens.scalar_embed_scale
    return rotary_decoder(
        trunk, names, windows=True, norm_offset=1.0, embedding_scale=scale, **numbers
    )


def _gpt2(trunk: Any) -> Architecture:
    """GPT-2: embedded positions, layer norms, an MLP without a gate."""
    names: Names = {"attention_norm": "ln_1", "qkv": ("attn.c_attn",), "scaling": "attn.scaling"}
    names |= {"out": "attn.c_proj", "mlp_norm": "ln_2", "mlp_in": ("mlp.c_fc",)}
    names |= {"down": "mlp.c_proj"}
    heads = trunk.config.n_head
    return Architecture(
        embedding=in_use(trunk.wte),
        position_embedding=in_use(trunk.wpe),
        layers=[_layer(layer, names, rotary=None) for layer in trunk.h],
        last_norm=Norm(in_use(trunk.ln_f)),
        heads=heads,
        kv_heads=heads,
        head_dim=trunk.config.n_embd // heads,
        activation=trunk.h[0].mlp.act,
        activation_name=_activation_name(trunk.config),
        gated=False,
    )


READERS: dict[type, Callable[[Any], Architecture]] = {
    tf.LlamaModel: _llama,
    tf.MistralModel: _mistral,
    tf.Qwen2Model: _mistral,
    tf.Qwen3Model: _qwen3,
    tf.GPT2Model: _gpt2,
    tf.Gemma2Model: _gemma2,
    tf.Gemma3TextModel: _gemma3,
    tf.Phi3Model: _phi3,
    tf.Olmo2Model: _olmo2,
    tf.SmolLM3Model: _smollm3,
    tf.GraniteModel: _granite,
}
"""By the class of the trunk; a class derived from one of these may compute something else."""
