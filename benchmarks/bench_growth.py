"""How cost grows: sampling and an update over batch, length of responses, vocabulary, model size.

One of them changes at a time, from 64 responses of 64 tokens to 8 prompts of 16 by size M with its
4,096 words; each case runs in a process of its own. Sampling records log-probs, entropies and
values; the update is one forward and backward of log-probs and values (critic on the policy's
trunk), all rows at once. `us` is microseconds per generated token (medians), `of floor` what share
of it the model's matrix products alone would take (see floor.py), MB how far the peak of memory
rises above what the process held before, less the gradients that an update leaves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from bench_memory import peak
from bench_rollout import DTYPES, GROUP, LENGTH, PROMPT, ROWS, GivenLengths, policy_of
from floor import decode_seconds, forward_seconds
from models import SIZES, prompt_ids

from lmpg.runtime.machine import keep_freed_memory

AXES: dict[str, list[Any]] = {
    "batch": [16, 64, 256],
    "length": [16, 64, 256],
    "vocabulary": [512, 4096, 32000],
    "size": ["S", "M", "L"],
}
BASE = {"size": "M", "batch": ROWS, "length": LENGTH, "vocabulary": 0}
HEADER = "axis       value  dtype sample us  of floor     MB  update us  of floor     MB"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=["fp32"])
    parser.add_argument("--base", help="another size than M for all axes but the last")
    parser.add_argument("--runs", type=int, default=3, help="timed runs: the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def case_figures(case: dict[str, Any], runs: int) -> dict[str, float]:
    """Times, memory and floors of one case, in this process."""
    rows, length, dtype = case["batch"], case["length"], DTYPES[case["dtype"]]
    shape = dict(SIZES[case["size"]])
    shape["vocab_size"] = case["vocabulary"] or shape["vocab_size"]
    policy = policy_of(case["size"], case["dtype"] == "bf16", vocab_size=shape["vocab_size"])
    sampler = GivenLengths(policy, length)
    sampler.lengths_B = torch.full((rows,), length)
    ids = prompt_ids(case["size"], rows // GROUP, PROMPT) % shape["vocab_size"]
    prompts = ids.repeat_interleave(GROUP, 0).tolist()
    uniforms_BT = torch.rand(rows, length, generator=torch.Generator().manual_seed(2))
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # libraries are loaded before
    before = max(psutil.Process().memory_info().rss, peak())
    sampled = median_seconds(lambda: sampler.sample(prompts, 1, uniforms_BT), runs)
    sampled_peak = peak() - before
    inputs = sampler.sample(prompts, 1, uniforms_BT).inputs

    def update() -> None:
        new = policy.evaluate(inputs)
        assert new.values_BT is not None
        (new.logprobs_BT.sum() + new.values_BT.sum()).backward()

    updated = median_seconds(update, runs)
    gradients = sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
    prefill = forward_seconds(shape, rows // GROUP * PROMPT, 0, dtype)
    once = forward_seconds(shape, rows * (PROMPT + length), rows * length, dtype)
    tokens = rows * length
    return {
        "sample_us": sampled / tokens * 1e6,
        "sample_of_floor": (prefill + decode_seconds(shape, dtype, rows, length)) / sampled,
        "sample_mb": sampled_peak / 1e6,
        "update_us": updated / tokens * 1e6,
        "update_of_floor": 3 * once / updated,
        "update_mb": (peak() - before - gradients) / 1e6,
    }


def median_seconds(run: Callable[[], Any], runs: int) -> float:
    """After a run that does not count."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def in_own_process(case: dict[str, Any], given: argparse.Namespace) -> dict[str, float]:
    """The same, with nothing before it in memory."""
    words = ["--child", json.dumps(case), "--runs", str(given.runs)]
    command = [sys.executable, __file__, *words, "--threads", str(given.threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def line(axis: str, value: Any, x: dict[str, Any]) -> str:
    """A row of the table."""
    sampled = f"{x['sample_us']:>10.1f}{x['sample_of_floor']:>10.2f}{x['sample_mb']:>7.0f}"
    updated = f"{x['update_us']:>11.1f}{x['update_of_floor']:>10.2f}{x['update_mb']:>7.0f}"
    return f"{axis:<10}{value!s:>6}  {x['dtype']:<5}{sampled}{updated}"


def main() -> None:
    """Measure case after case and print each as it is known."""
    given = arguments()
    torch.set_num_threads(given.threads)
    if given.child:
        keep_freed_memory()  # as a run does
        print(json.dumps(case_figures(json.loads(given.child), given.runs)))
        return
    print(HEADER, flush=True)
    rows = []
    for axis in given.axes:
        for dtype in given.dtypes:
            for value in AXES[axis]:
                case = {**BASE, "size": given.base or "M", axis: value, "dtype": dtype}
                rows.append({"axis": axis, **case, **in_own_process(case, given)})
                print(line(axis, value, rows[-1]), flush=True)
                if given.json:
                    given.json.write_text(json.dumps({"cases": rows}, indent=1))


if __name__ == "__main__":
    main()
