"""Prints the table of docs/gpus.md: GRPO with weights that are shared out, on 1 to 8 × 8 GPUs.

`python docs/sharding_table.py`. Memory is by the code that says it in the first lines of a run;
seconds are arithmetic on the assumptions below. No weights are loaded.
"""

from __future__ import annotations

from memory_table import MODELS, shape
from transformers import LlamaConfig, PretrainedConfig

from lmpg.language.models.footprint.needs import BF16, FP32, Work, total
from lmpg.language.models.footprint.shape import Shape

SIZES: dict[str, PretrainedConfig] = {  # as Qwen2.5-7B and Llama-3-70B
    "7B": MODELS["7B"],
    "70B": LlamaConfig(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28_672,
        vocab_size=128_256,
        tie_word_embeddings=False,
    ),
}
COUNTS = (1, 8, 16, 32, 64)
ON_A_MACHINE = 8
ROWS, PROMPT, RESPONSE = 4, 512, 1536
"""Of a micro-batch, one per process and optimizer step."""
FLOPS = 0.4 * 989e12
"""Of an H100 in bfloat16, of which training reaches two fifths."""
WITHIN, BETWEEN = 300e9, 40e9
"""Bytes per second that a GPU gets of the others of its machine (NVLink), and of other machines
(400 Gbit/s for each GPU)."""


def work(model: Shape, count: int, shards: int) -> Work:
    """GRPO with a reference in bfloat16, and layers that are computed again."""
    return Work(
        model,
        rows=ROWS,
        prompt=PROMPT,
        response=RESPONSE,
        sampled=8 * count,
        kept=BF16,
        product=BF16,
        saved=BF16,
        frozen={"reference": float(BF16 * model.weights)},
        recompute=True,
        engine_stays=False,
        count=count,
        shards=shards,
        device="cuda",
    )


def seconds(model: Shape, count: int, shards: int) -> tuple[float, float]:
    """Of one optimizer step: computing, and exchanging weights (twice) and gradients in float32."""
    tokens = ROWS * (PROMPT + RESPONSE)
    computing = 8 * model.weights * tokens / FLOPS  # forward, forward again, backward
    bytes_of_all = FP32 * model.weights
    speed = WITHIN if shards <= ON_A_MACHINE else BETWEEN
    exchange = 3 * bytes_of_all * (shards - 1) / shards / speed
    replicas = count // shards
    exchange += 2 * bytes_of_all / shards * (replicas - 1) / replicas / BETWEEN
    return computing, exchange


def table() -> str:
    """Markdown: GB of each GPU and seconds of a step, shared out by all and within machines."""
    rows = [
        "| model | GPUs | full: GB of each | compute, s | exchange, s "
        "| hybrid: GB of each | exchange, s |",
        "|---" * 7 + "|",
    ]
    for name, config in SIZES.items():
        model = shape(config)
        for count in COUNTS:
            computing, exchange = seconds(model, count, count)
            cells = [f"{total(work(model, count, count)) / 1e9:.0f}", f"{computing:.1f}"]
            cells.append(f"{exchange:.1f}")
            if count > ON_A_MACHINE:
                cells.append(f"{total(work(model, count, ON_A_MACHINE)) / 1e9:.0f}")
                cells.append(f"{seconds(model, count, ON_A_MACHINE)[1]:.1f}")
            else:
                cells += ["", ""]
            rows.append(f"| {name} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
