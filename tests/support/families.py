"""Tiny random models of every family that lmpg computes itself, each with what is special to it
large enough to matter: windows shorter than the texts, softcaps that bend, factors far from 1."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

from lmpg.language.models.lora import with_adapter
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.settings import LoraSettings
from tests.support.tiny import CONTEXT, EOS, PAD, VOCABULARY

YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.5] * 4}
LONGROPE |= {"long_factor": [4.0] * 4, "original_max_position_embeddings": CONTEXT}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
TWO_ROTATIONS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 8, "sliding_window": 5} | ALTERNATING
CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
FACTORS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.3}
FACTORS |= {"attention_multiplier": 0.2, "logits_scaling": 0.5}

FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", {}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama, yarn": (
        "Llama",
        {"rope_parameters": YARN | {"original_max_position_embeddings": 32}},
    ),
    "mistral": ("Mistral", {"head_dim": 16, "sliding_window": None}),
    "mistral, long window": ("Mistral", {"sliding_window": CONTEXT}),
    "mistral, short window": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 1}),
    "qwen2, windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gpt2": ("GPT2", {}),
    "gpt2, scaled layers": ("GPT2", {"scale_attn_by_inverse_layer_idx": True}),
    "gemma2": ("Gemma2", GEMMA | CAPPED),
    "gemma2, untied": ("Gemma2", GEMMA | CAPPED | {"tie_word_embeddings": False}),
    "gemma3": ("Gemma3", GEMMA | {"rope_parameters": TWO_ROTATIONS}),
    "phi3": ("Phi3", {"sliding_window": 5}),
    "phi3, tied": ("Phi3", {"tie_word_embeddings": True}),
    "phi3, partly rotated": ("Phi3", {"rope_parameters": PARTIAL}),
    "phi3, longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": CONTEXT},
    ),
    "olmo2": ("Olmo2", {}),
    "smollm3": (
        "SmolLM3",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 4},
    ),
    "granite": ("Granite", FACTORS),
    "granite, tied": ("Granite", FACTORS | {"tie_word_embeddings": True}),
}


def tiny_family(name: str, **changes) -> PreTrainedModel:
    """A causal LM (hidden 32, 3 layers, 4 heads that share 2 of keys) whose norms and biases are
    random, too: as they start they hide mistakes."""
    family, special = FAMILIES[name]
    return tiny_of(family, **special | changes)


def tiny_of(family: str, **changes) -> PreTrainedModel:
    """The same of any family of transformers."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": CONTEXT}
    sizes |= {"initializer_range": 0.15, "eos_token_id": EOS, "pad_token_id": PAD}
    sizes |= {"bos_token_id": None}
    if family != "GPT2":
        sizes |= {"intermediate_size": 64, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    model_name = {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM")
    config = getattr(transformers, config_name)(**sizes | changes)
    model = getattr(transformers, model_name)(config).eval()
    with torch.no_grad():
        for x in model.parameters():
            if x.dim() == 1:
                x += 0.3 * torch.randn(x.shape)
    return model


def policy_of(model: PreTrainedModel, lora: bool = False) -> CausalLMPolicy:
    """With a critic on its trunk, a temperature, and two tokens that end a response."""
    if lora:
        wrapped = with_adapter(model, LoraSettings(rank=4))
        with torch.no_grad():
            for x in wrapped.parameters():
                if x.requires_grad:
                    x += 0.1 * torch.randn(x.shape)
        model = wrapped
    options = {"eos_token_ids": (EOS, 20), "pad_token_id": PAD, "context_length": CONTEXT}
    return CausalLMPolicy(model, torch.nn.Linear(32, 1), temperature=1.2, **options)
