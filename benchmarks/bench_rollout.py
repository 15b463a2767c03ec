"""Seconds of sampling alone, ours against transformers' `generate`, in turns in one process.

Fixed: 64 responses of 64 tokens to 8 prompts of 16 (no EOS is sampled). Both sides have the same
weights; `generate` runs in its best plain setting: weights in the precision, a KV cache, sampling
without top-k. Varying: lengths 1 to 64, all alike often; `generate` computes all rows until the
longest ends, so that its time is that of the fixed case. Batch: seconds per token from 16 to 256
responses. `cpu` is the ratio of processor time, which other programs on the machine disturb less.
Ours records log-probs, entropies and values of a value head, `generate` nothing. `--model` takes a
model of one's own in place of the sizes: its prompts are sums asked in words.

`floor` is the larger of 2 operations per weight and token (of the distinct prompts, too) at the
speed of this machine's products of 1,024 x 1,024 matrices, and of the weights' bytes per step at
the speed at which it reads memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from brought import least_likely, questions
from models import EOS, PAD, SIZES, prompt_ids, random_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lmpg.language.models.critic import new_value_head
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.sampler import Sampler

ROWS, GROUP, PROMPT, LENGTH = 64, 8, 16, 64
BATCHES = (16, 64, 256)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADER = (
    "size     dtype case       rows  ours s   peer s  ratio    cpu  us/token  floor s  of floor"
)
Seconds = tuple[float, float]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=("S", "M", "L"), default=["S", "M", "L"])
    parser.add_argument("--model", help="this model (folder or Hub id), in place of sizes")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--runs", type=int, default=5, help="timed turns: the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-batches", action="store_true", help="leave the batch sizes out")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


class GivenLengths(Sampler):
    """A sampler whose responses have the lengths that they are told."""

    lengths_B: torch.Tensor

    def _limits(self, prompts: list[list[int]]) -> torch.Tensor:
        return self.lengths_B


def model_of(size: str, **changes: int) -> PreTrainedModel:
    """A random model, or the one that was brought, in fp32."""
    if size in SIZES:
        return random_model(size, **changes)
    return AutoModelForCausalLM.from_pretrained(size, dtype=torch.float32)


@cache
def end_of(size: str) -> int:
    """An EOS that is not sampled."""
    if size in SIZES:
        return EOS
    return least_likely(model_of(size), AutoTokenizer.from_pretrained(size))


def prompts_of(size: str, count: int) -> list[list[int]]:
    """The ids of `count` prompts."""
    if size in SIZES:
        return prompt_ids(size, count, PROMPT).tolist()
    return AutoTokenizer.from_pretrained(size)(questions(count))["input_ids"]


def policy_of(size: str, bf16: bool, **changes: int) -> CausalLMPolicy:
    """A model with a value head."""
    model = model_of(size, **changes)
    return CausalLMPolicy(
        model,
        new_value_head(model.config.hidden_size),
        temperature=1.0,
        eos_token_ids=(end_of(size),),
        pad_token_id=PAD,
        context_length=512,
        bf16=bf16,
    )


def ours(size: str, dtype: str, rows: int, varying: bool) -> Callable[[], Any]:
    """A function that samples `rows` responses, one entry per response in its list of prompts."""
    policy = policy_of(size, dtype == "bf16")
    sampler = GivenLengths(policy, LENGTH)
    lengths_B = torch.arange(rows) % LENGTH + 1 if varying else torch.full((rows,), LENGTH)
    order_B = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    sampler.lengths_B = lengths_B[order_B]
    ids = [x for x in prompts_of(size, rows // GROUP) for _ in range(GROUP)]
    uniforms_BT = torch.rand(rows, LENGTH, generator=torch.Generator().manual_seed(2))
    return lambda: sampler.sample(ids, 1, uniforms_BT)


def peer(size: str, dtype: str) -> Callable[[], Any]:
    """A function that does the same with `generate`, all rows at full length."""
    model = model_of(size).to(DTYPES[dtype])
    texts = [x for x in prompts_of(size, ROWS // GROUP) for _ in range(GROUP)]
    width, end = max(map(len, texts)), end_of(size)
    ids = torch.tensor([[PAD] * (width - len(x)) + x for x in texts])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in texts])
    options = {"max_new_tokens": LENGTH, "top_k": None, "pad_token_id": PAD, "eos_token_id": end}
    config = transformers.GenerationConfig(do_sample=True, use_cache=True, **options)

    def generate() -> Any:
        with torch.no_grad():
            return model.generate(ids, attention_mask=mask, generation_config=config)

    assert generate().shape == (ROWS, width + LENGTH)
    return generate


def in_turns(contestants: list[Callable[[], Any]], runs: int) -> list[Seconds]:
    """Median wall and processor seconds of each, after a turn that does not count."""
    seen: list[list[Seconds]] = [[] for _ in contestants]
    for _ in range(runs + 1):
        for times, run in zip(seen, contestants):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [
        (statistics.median(x for x, _ in times[1:]), statistics.median(y for _, y in times[1:]))
        for times in seen
    ]


def floor_seconds(size: str, dtype: str, tokens: int, steps: int) -> float:
    """The least time in which this machine could do the arithmetic, or read the weights."""
    num_weights = sum(x.numel() for x in model_of(size).parameters())
    square, long = torch.randn(1024, 1024).to(DTYPES[dtype]), torch.randn(2**26)
    product = min(_seconds(lambda: square @ square) for _ in range(20))
    reading = min(_seconds(long.sum) for _ in range(5))
    arithmetic = 2 * num_weights * tokens * product / (2 * 1024**3)
    bandwidth = long.nbytes / reading
    return max(arithmetic, num_weights * square.element_size() * steps / bandwidth)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(size: str, dtype: str, case: str, rows: int, times: list[Seconds]) -> dict[str, Any]:
    """One line of the table; times of ours and, where it takes part, of the peer."""
    tokens = rows * LENGTH if case != "varying" else rows * (LENGTH + 1) // 2
    floor = floor_seconds(size, dtype, tokens + rows // GROUP * PROMPT, LENGTH)
    (mine, my_cpu), *other = times
    figures = {
        "size": size,
        "dtype": dtype,
        "case": case,
        "rows": rows,
        "seconds": mine,
        "peer_seconds": other[0][0] if other else None,
        "ratio": other[0][0] / mine if other else None,
        "cpu_ratio": other[0][1] / my_cpu if other else None,
        "us_per_token": mine / tokens * 1e6,
        "floor_seconds": floor,
    }
    parts = [f"{figures[name]:6.2f}" if other else " " * 6 for name in ("ratio", "cpu_ratio")]
    print(
        f"{Path(size).name[:8]:8} {dtype:5} {case:9} {rows:5} {mine:7.3f}  "
        f"{f'{other[0][0]:7.3f}' if other else ' ' * 7} {' '.join(parts)}  "
        f"{figures['us_per_token']:8.1f}  {floor:7.3f}  {floor / mine:8.2f}",
        flush=True,
    )
    return figures


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    given = arguments()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    cases = []
    print(HEADER)
    for size in [given.model] if given.model else given.sizes:
        for dtype in given.dtypes:
            contestants = [ours(size, dtype, ROWS, varying) for varying in (False, True)]
            fixed, varying, its = in_turns([*contestants, peer(size, dtype)], given.runs)
            cases.append(row(size, dtype, "fixed", ROWS, [fixed, its]))
            cases.append(row(size, dtype, "varying", ROWS, [varying, its]))
            if not given.no_batches:
                batches = [ours(size, dtype, rows, False) for rows in BATCHES]
                for rows, seconds in zip(BATCHES, in_turns(batches, given.runs)):
                    cases.append(row(size, dtype, "batch", rows, [seconds]))
    if given.json:
        given.json.write_text(json.dumps({"cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
