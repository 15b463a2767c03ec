"""Tiny random language models and a character tokenizer for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lmpg.language.models.policy import CausalLMPolicy

SPECIAL = ["<pad>", "<eos>", "<unk>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,!?+-*/=:;'\"()<>#&%$@|\n"
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
PAD, EOS = 0, 1
CONTEXT = 64


def tiny_tokenizer(pad: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token per character, `VOCABULARY` in all; adds no special tokens by itself."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"unk_token": "<unk>"}
    special |= {"pad_token": "<pad>"} if pad else {}
    special |= {"eos_token": "<eos>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tiny_model(kind: str = "llama", seed: int = 0, **changes):
    """A random causal LM (hidden 32, 2 layers, context 64) with rather peaked distributions."""
    torch.manual_seed(seed)
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.15,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "bos_token_id": None,
    }
    grouped = {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": False}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**{**shared, **changes})).eval()
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**{**shared, **grouped, **changes})).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(
            Qwen3Config(**{**shared, **grouped, "head_dim": 16, **changes})
        ).eval()
    if kind == "mistral":
        changes = {"sliding_window": None, **changes}
        return MistralForCausalLM(MistralConfig(**{**shared, **grouped, **changes})).eval()
    if kind == "reward":
        config = LlamaConfig(**{**shared, **grouped, "num_labels": 1, **changes})
        return LlamaForSequenceClassification(config).eval()
    return LlamaForCausalLM(LlamaConfig(**{**shared, **grouped, **changes})).eval()


def deep_policy(**changes) -> CausalLMPolicy:
    """A policy in bf16 whose rounding moves log-probs by more than 0.1 nats: many layers, and a
    vocabulary with many unlikely tokens."""
    size = {"num_hidden_layers": 24, "vocab_size": 4096, "initializer_range": 0.5}
    return CausalLMPolicy(
        tiny_model(**size | changes),
        None,
        temperature=1.0,
        eos_token_ids=(EOS,),
        pad_token_id=PAD,
        context_length=CONTEXT,
        bf16=True,
    )


def save_tiny(folder: Path | str, kind: str = "llama", seed: int = 0, **changes) -> str:
    """Model and tokenizer in `folder`, as a user's model folder; returns its path."""
    tiny_model(kind, seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def configured(folder: Path | str, **changes) -> str:
    """The folder with other values in its model's config.json."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)
