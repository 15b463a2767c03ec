"""Random Llamas of three sizes, their tokenizer and prompts: the same on both sides of a benchmark.

Imports torch and transformers alone, so that it serves in a peer's environment as well.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {  # 0.26, 6.2 and 61 million parameters
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
}
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(len(SPECIAL))


def configuration(size: str, **changes) -> LlamaConfig:
    """The shape of size S, M or L: tied embeddings, no dropout, 512 positions."""
    shared = {
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "attention_dropout": 0.0,
    }
    return LlamaConfig(**{**SIZES[size], **shared, **changes})


def random_model(size: str, seed: int = 0, ends: bool = False, **changes) -> LlamaForCausalLM:
    """A float32 model with random weights; unless it `ends`, it samples no special token.

    Then every response has full length: see `_mute_special_tokens`.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(configuration(size, **changes)).eval()
    if not ends:
        _mute_special_tokens(model)
    return model


@torch.no_grad()
def _mute_special_tokens(model: LlamaForCausalLM) -> None:
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


def word_tokenizer(size: str) -> PreTrainedTokenizerFast:
    """One token per word: w4, w5, … to the end of the vocabulary."""
    names = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), SIZES[size]["vocab_size"]))]
    vocabulary = {name: i for i, name in enumerate(names)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", padding_side="left", **special
    )


def prompt_ids(size: str, count: int, length: int = 16, seed: int = 0) -> Tensor:
    """Random words, int64 [count, length]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, length)
    return torch.randint(len(SPECIAL), SIZES[size]["vocab_size"], shape, generator=generator)


def prompts(size: str, count: int, length: int = 16, seed: int = 0) -> list[str]:
    """The same as `prompt_ids`, as texts."""
    rows = prompt_ids(size, count, length, seed).tolist()
    return [" ".join(f"w{i}" for i in row) for row in rows]


def save(size: str, folder: Path | str, seed: int = 0, ends: bool = False) -> str:
    """Model and tokenizer in `folder`, as a user's model folder; returns its path."""
    random_model(size, seed, ends).save_pretrained(folder)
    word_tokenizer(size).save_pretrained(folder)
    return str(folder)
