"""Prints the table of docs/memory.md: what runs need, by size of the model and method.

`python docs/memory_table.py`; by the code that says it in the first lines of a run. No weights are
loaded: models are made of their configurations alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from lmpg.language.models.footprint.needs import BF16, Work, total
from lmpg.language.models.footprint.shape import Shape, shape_of

MODELS: dict[str, PretrainedConfig] = {  # as SmolLM2-135M and Qwen2.5 of three sizes
    "0.1B": LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49_152,
        tie_word_embeddings=True,
    ),
    "0.5B": Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "1.5B": Qwen2Config(
        hidden_size=1536,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "7B": Qwen2Config(
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18_944,
        vocab_size=152_064,
        tie_word_embeddings=False,
    ),
}
METHODS = ("PPO, shared critic", "PPO, separate critic", "GRPO", "DPO")
WAYS = {  # rank of adapters, gradient checkpointing, a base in 4 bits
    "full": (0, False, False),
    "full, checkpointing": (0, True, False),
    "LoRA": (16, False, False),
    "LoRA, checkpointing": (16, True, False),
    "4-bit": (16, False, True),
    "4-bit, checkpointing": (16, True, True),
}


def shape(config: PretrainedConfig) -> Shape:
    """Of a model that is not there."""
    with torch.device("meta"):
        return shape_of(AutoModelForCausalLM.from_config(config))


def work(model: Shape, method: str, rank: int, recompute: bool, packed: bool) -> Work:
    """A run on one GPU in bf16: 64 responses of 256 tokens to prompts of as many, micro-batches of
    8 rows (DPO: 4 pairs); PPO has a reference, GRPO (with `--algorithm.kl-coef 0`) has none."""
    reference = method.startswith("PPO") and not rank
    found = Work(
        model,
        rows=8,
        prompt=256,
        response=256,
        sampled=64,
        rank=rank,
        packed=packed,
        kept=BF16,
        product=BF16,
        saved=BF16,
        frozen={"reference": float(BF16 * model.weights)} if reference else {},
        recompute=recompute,
        device="cuda",
    )
    if method == "DPO":
        return replace(found, sampled=0)
    return replace(found, critic_shape=model if "separate" in method else None)


def table() -> str:
    """Markdown, in GB."""
    rows = ["| model | method | " + " | ".join(WAYS) + " |", "|---" * (2 + len(WAYS)) + "|"]
    for name, config in MODELS.items():
        model = shape(config)
        for method in METHODS:
            cells = [f"{total(work(model, method, *way)) / 1e9:.1f}" for way in WAYS.values()]
            rows.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
