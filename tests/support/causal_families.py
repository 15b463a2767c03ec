"""A tiny random model of every family that transformers calls a causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lmpg.language.models.precision import save_folder
from tests.support.tiny import CONTEXT, EOS, PAD, VOCABULARY, tiny_tokenizer

FAMILIES: dict[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Class by `model_type`."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "num_hidden_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "ffn_dim": 64,
    "sliding_window": 8,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 16,
    "index_topk": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "state_size": 8,
    "initializer_range": 0.15,
    "is_decoder": True,
    "emb_dim": 32,
    "max_seq_len": CONTEXT,
    "depth": 1,
    "rotary_dim": 4,
    "mamba_d_ssm": 64,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "linear_head_dim": 8,
    "linear_num_heads": 2,
    "dim_ff": 64,
    "dff": 64,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": EOS,
}
"""What makes a model small, by the names that configs use; each takes those that it knows."""


def layers(*kinds: str, name: str = "layer_types") -> dict[str, Any]:
    """Layers of these kinds, one after the other."""
    return {name: list(kinds), "num_hidden_layers": len(kinds)}


LINEAR, FULL, WINDOW = "linear_attention", "full_attention", "sliding_attention"
HYBRID = layers(LINEAR, FULL)
WINDOWS = layers(WINDOW, FULL)
LATENT = {"num_key_value_heads": 4}
"""Attention with compressed keys and values: as many heads of keys as of queries."""
SHORT_ROTATIONS = {"rope_type": "default", "rope_theta": 1e4}
NEEDY = ("zamba",)
"""Configs that are none without arguments."""
UNTRIED = {
    "dots3_note": "an image and audio model whose config names layers of the large one",
    "gemma3n": "an image and audio model that needs timm; its text family is gemma3n_text",
    "gemma4_assistant": "it drafts tokens for another model, whose cache it reads",
    "gemma4_unified_assistant": "it drafts tokens for another model, whose cache it reads",
    "musicgen": "it makes music; its class takes only a part of its config",
    "musicgen_melody": "it makes music; its class takes only a part of its config",
}
"""Families of which no small model is made here, and why."""
SPECIAL: dict[str, dict[str, Any]] = {
    "afmoe": WINDOWS,
    "axk1": LATENT,
    "axk2": LATENT,
    "bailing_hybrid": HYBRID | LATENT,
    "bamba": {"attn_layer_indices": [1]},
    "cohere2": WINDOWS,
    "cohere2_moe": WINDOWS,
    "cohere_compass_text": WINDOWS
    | {
        "rope_parameters": dict.fromkeys(
            (WINDOW, FULL), SHORT_ROTATIONS | {"mrope_section": [2, 1, 1]}
        )
    },
    "cpmant": {"prompt_length": 4, "prompt_types": 4, "position_bias_num_buckets": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 8},
    "dots3_note_text": LATENT,
    "exaone4": WINDOWS,
    "exaone_moe": WINDOWS,
    "gemma3_text": WINDOWS,
    "gemma3n_text": WINDOWS
    | {"num_kv_shared_layers": 0, "laurel_rank": 4, "activation_sparsity_pattern": [0.5, 0.5]},
    "gemma4_text": WINDOWS,
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": HYBRID | {"shared_intermediate_size": 16},
    "inkling2_text": {
        "sliding_window_size": 8,
        "rel_extent": 8,
        "d_rel": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "unpadded_vocab_size": VOCABULARY,
    },
    "inkling_text": {
        "sliding_window_size": 8,
        "rel_extent": 8,
        "d_rel": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": HYBRID | LATENT,
    "lfm2_moe": layers("conv", FULL) | {"num_dense_layers": 1},
    "lfm2": layers("conv", FULL),
    "lfm3": layers("conv", FULL),
    "longcat_flash": LATENT | {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "n_groups": 1, "chunk_size": 8},
    "minicpm3": LATENT,
    "minimax_m3_vl_text": {"dense_intermediate_size": 64, "shared_intermediate_size": 16},
    "nemotron_h": {
        "layers_block_type": [LINEAR, FULL, "moe"],
        "num_hidden_layers": 3,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 16,
    },
    "qwen3_next": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "qwen4_exp_text": HYBRID
    | {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1],
        "ple_embed_dim": 32,
        "ngram_vocab_size_base": 64,
        "hc_lowrank": 8,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
        "heads_per_ngram": 4,
    },
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 8},
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "roc_bert": {
        "shape_vocab_size": 8,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": 8,
        "pronunciation_embed_dim": 8,
    },
    "xlnet": {"d_inner": 64},
    "xlstm": {"hidden_size": 64, "qk_dim_factor": 1.0},
    "moshi": {"sliding_window": CONTEXT},
    "hy_v4": LATENT,
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "youtu": LATENT,
    "zamba": layers(LINEAR, "hybrid", LINEAR, "hybrid", name="layers_block_type")
    | {"head_dim": 16, "num_key_value_heads": 4},
    "zamba2": layers(LINEAR, "hybrid", name="layers_block_type")
    | {"head_dim": 16, "num_key_value_heads": 4, "chunk_size": 8},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def sizes_of(cls: Any, kind: str = "") -> dict[str, Any]:
    """The arguments of a small config, those of its parts within them."""
    default = {} if kind in NEEDY else vars(cls())
    known = set(default or SIZES) | set(cls.attribute_map)
    stand_ins = {name for name, real in cls.attribute_map.items() if real in SIZES}
    found = {k: v for k, v in SIZES.items() if k in known and k not in stand_ins}
    for name, value in default.items():
        if isinstance(value, PreTrainedConfig):
            found[name] = sizes_of(type(value), value.model_type)
    return found | SPECIAL.get(kind, {})


def tiny_config(kind: str) -> Any:
    """The config of a family's small model."""
    cls = CONFIG_MAPPING[kind]
    return cls(**sizes_of(cls, kind))


def tiny_of_family(kind: str) -> PreTrainedModel:
    """A small random model whose norms and biases, and whose embedding of padding, are like those
    of a trained one: as they start they hide mistakes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind)).float().eval()
    with torch.no_grad():
        for x in model.parameters():
            if x.dim() == 1:
                x += 0.1 * torch.randn(x.shape)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.15 * torch.randn(module.embedding_dim)
    return model


def save_family(folder: Path, kind: str) -> None:
    """Model and tokenizer in `folder`, as a user's model folder."""
    save_folder(folder, tiny_of_family(kind), tiny_tokenizer())
