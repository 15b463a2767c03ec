"""Random models, their tokenizer and prompts: the same on both sides of a benchmark.

Imports torch and transformers alone, so that it serves in a peer's environment as well.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

SIZES = {  # Llamas of 0.26, 6.2 and 61 million parameters, a Qwen2 of 494 million, and a tiny one
    "S": {
        "hidden_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 172,
        "vocab_size": 512,
    },
    "M": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 768,
        "vocab_size": 4096,
    },
    "L": {
        "hidden_size": 576,
        "num_hidden_layers": 12,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 32000,
    },
    "Q": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 512,
    },
}
QWEN = ("Q", "tiny")
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(len(SPECIAL))


def configuration(size: str, **changes) -> PretrainedConfig:
    """The shape of a size: tied embeddings, no dropout, 512 positions (Qwen2: 1024)."""
    shared = {
        "max_position_embeddings": 1024 if size in QWEN else 512,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "attention_dropout": 0.0,
    }
    kind = Qwen2Config if size in QWEN else LlamaConfig
    return kind(**{**SIZES[size], **shared, **changes})


def random_model(size: str, seed: int = 0, ends: bool = False, **changes) -> PreTrainedModel:
    """A float32 model with random weights; unless it `ends`, it samples no special token.

    Then every response has full length: see `_mute_special_tokens`.
    """
    torch.manual_seed(seed)
    kind = Qwen2ForCausalLM if size in QWEN else LlamaForCausalLM
    model = kind(configuration(size, **changes)).eval()
    if not ends:
        _mute_special_tokens(model)
    return model


@torch.no_grad()
def _mute_special_tokens(model: PreTrainedModel) -> None:
    """Give EOS, padding and the like a probability below 1e-9 at every step.

    Channel 0 of the residual stream carries one positive constant, to which no layer adds; in the
    head it gives all words the same logit and special tokens a far lower one. Nothing else about
    the model changes, so whatever runs it does the work that it would do anyway.
    """
    embedding = model.get_input_embeddings().weight
    embedding[:, 0] = 0.3
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.get_output_embeddings().weight[: len(SPECIAL), 0] = -100.0


def vocabulary(size: str) -> dict[str, int]:
    """Token → id: special ones, then w4, w5, … to the end; for Qwen2 all single bytes before them.

    transformers reads the tokenizer of a Qwen2 as byte-level BPE whatever it was saved as.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if size in QWEN else []
    first = [*SPECIAL, *letters]
    words = (f"w{i}" for i in range(len(first), SIZES[size]["vocab_size"]))
    return {name: i for i, name in enumerate([*first, *words])}


def word_tokenizer(size: str) -> PreTrainedTokenizerFast:
    """One token per word, or for Qwen2 (which gets no merges) per letter."""
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    special |= {"unk_token": "<unk>", "padding_side": "left"}
    if size in QWEN:
        return Qwen2Tokenizer(vocab=vocabulary(size), merges=[], **special)
    inner = Tokenizer(models.WordLevel(vocabulary(size), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def prompt_ids(size: str, count: int, length: int = 16, seed: int = 0) -> Tensor:
    """Random words (Qwen2: letters), int64 [count, length]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, length)
    if size in QWEN:
        known = vocabulary(size)
        letters = torch.tensor([known[letter] for letter in ascii_lowercase])
        return letters[torch.randint(len(letters), shape, generator=generator)]
    return torch.randint(len(SPECIAL), SIZES[size]["vocab_size"], shape, generator=generator)


def prompts(size: str, count: int, length: int = 16, seed: int = 0) -> list[str]:
    """The same as `prompt_ids`, as texts."""
    names, between = list(vocabulary(size)), "" if size in QWEN else " "
    rows = prompt_ids(size, count, length, seed).tolist()
    return [between.join(names[i] for i in row) for row in rows]


def save(size: str, folder: Path | str, seed: int = 0, ends: bool = False) -> str:
    """Model and tokenizer in `folder`, as a user's model folder; returns its path."""
    random_model(size, seed, ends).save_pretrained(folder)
    word_tokenizer(size).save_pretrained(folder)
    return str(folder)
