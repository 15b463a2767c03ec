"""What turns cost: 8 turns of 16 tokens behind a prompt of 256, against one turn of 128.

    python benchmarks/bench_turns.py [--path MODEL] [--rows 32] [--rounds 5]

Both sample as many tokens of the policy, the likeliest ones and no EOS, by the engine that a
rollout would take. Between two turns stand `--between` tokens, so that each reads that many more
and the last one of its row. Times are medians of rounds that take turns, of a clock and of the
processor (which a busy machine changes less); the ratios are what counts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from lmpg.language.models.loading import load_policy, tokenizer_of
from lmpg.language.models.settings import ModelSettings
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.turn_by_turn import Turns

PROMPT, TURNS, STEPS = 256, 8, 16


def seconds(
    sampler: Sampler, prompts: list[list[int]], turns: int, between: int
) -> tuple[float, float]:
    """Of a rollout of so many turns, by the clock and of the processor."""
    rows, steps = list(range(len(prompts))), TURNS * STEPS // turns
    texts = [list(ids) for ids in prompts]
    begun = time.perf_counter(), time.process_time()
    taken = Turns(sampler, PROMPT + turns * (steps + between))
    limits_R = torch.full((len(rows),), steps)
    for turn in range(turns):
        last = turn + 1 == turns
        samples = taken.sample(rows, texts, limits_R, None, last=last)
        ids = samples.inputs["response_ids"].tolist()
        texts = [text + x + [5] * between for text, x in zip(texts, ids)]
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--between", type=int, default=8)
    asked = parser.parse_args()
    settings = ModelSettings(path=asked.path)
    policy = load_policy(settings, tokenizer_of(settings), critic=False, temperature=1.0)
    policy.eos_token_ids = ()
    sampler = Sampler(policy, TURNS * STEPS)
    drawn = torch.Generator().manual_seed(0)
    prompts = torch.randint(10, 200, (asked.rows, PROMPT), generator=drawn).tolist()
    found: dict[int, list[tuple[float, float]]] = {1: [], TURNS: []}
    for round_ in range(asked.rounds + 1):
        for turns, times in found.items():
            took = seconds(sampler, prompts, turns, asked.between)
            if round_:  # the first one warms up
                times.append(took)
    print(f"{asked.rows} rows, sampled {sampler.backend}")
    for i, clock in enumerate(("clock", "processor")):
        one, several = ([x[i] for x in times] for times in found.values())
        ratios = [b / a for a, b in zip(one, several)]
        print(
            f"{clock}: one turn of {TURNS * STEPS} tokens {statistics.median(one):.2f} s, {TURNS} "
            f"of {STEPS} {statistics.median(several):.2f} s, ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
