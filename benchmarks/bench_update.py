"""Seconds of an update alone: no sampling, no rewards, no logging.

GRPO: one pass over 64 responses of 64 tokens to 8 prompts of 16, and the reference's log-probs.
PPO: 4 epochs with one minibatch of 64 responses to 64 prompts, the critic on the policy's trunk or
on one of its own. `varying` is the ratio of the same update where responses have 1 to 64 tokens,
all lengths alike often, to that with 64 for all; the two take turns. `cpu s` is processor time,
which other programs disturb less. `floor` is 6 operations per weight and token (8 with a reference,
and 6 for a critic's weights) at the speed of this machine's products of 1,024 × 1,024 matrices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import prompt_ids, random_model

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.language.models.critic import critic_like, new_value_head
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.runtime.machine import keep_freed_memory
from lmpg.runtime.processes import SingleProcess
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater
from lmpg.types import Rollout

ROWS, GROUP, PROMPT, LENGTH, EPOCHS = 64, 8, 16, 64, 4
CASES = ("grpo", "ppo_shared", "ppo_separate")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADER = "case         size dtype seconds   cpu s  varying (cpu)  floor s  of floor"
Seconds = tuple[float, float]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=("S", "M", "L"), default=["S", "M"])
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--runs", type=int, default=5, help="timed runs, of which the median counts"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--microbatch", type=int, default=ROWS, help="rows of a micro-batch")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def policy_for(case: str, size: str, dtype: str) -> CausalLMPolicy:
    """A random model with the case's critic."""
    model = random_model(size)
    critic = case.partition("_")[2]
    return CausalLMPolicy(
        model,
        new_value_head(model.config.hidden_size) if critic == "shared" else None,
        temperature=1.0,
        eos_token_ids=(2,),
        pad_token_id=0,
        context_length=512,
        bf16=dtype == "bf16",
        critic=critic_like(model) if critic == "separate" else None,
    )


def rollout_of(policy: CausalLMPolicy, case: str, size: str, varying: bool) -> Rollout:
    """Random responses with random scores, as the policy sees them now."""
    group = GROUP if case == "grpo" else 1
    lengths_B = torch.arange(1, ROWS + 1) if varying else torch.full((ROWS,), LENGTH)
    lengths_B = lengths_B[torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))]
    mask_BT = torch.arange(LENGTH) < lengths_B[:, None]
    inputs = {
        "prompt_ids": prompt_ids(size, ROWS // group, PROMPT).repeat_interleave(group, 0),
        "prompt_lengths": torch.full((ROWS,), PROMPT),
        "response_ids": prompt_ids(size, ROWS, LENGTH, seed=1) * mask_BT,
        "response_lengths": lengths_B,
    }
    with torch.no_grad():
        new = policy.evaluate(inputs)
    last_BT = mask_BT & (torch.arange(LENGTH) == lengths_B[:, None] - 1)
    scores_B = torch.randn(ROWS, generator=torch.Generator().manual_seed(2))
    values_BT = new.values_BT
    return Rollout(
        inputs=inputs,
        mask_BT=mask_BT,
        logprobs_BT=new.logprobs_BT,
        rewards_BT=last_BT * scores_B[:, None],
        terminated_BT=last_BT,
        ended_BT=last_BT,
        scorable_B=torch.ones(ROWS, dtype=torch.bool),
        values_BT=values_BT,
        next_values_BT=None if values_BT is None else torch.zeros_like(values_BT),
        ref_logprobs_BT=new.logprobs_BT,
    )


def updating(case: str, size: str, dtype: str, varying: bool, microbatch: int) -> Callable:
    """A function that does one update, with the reference's pass for GRPO."""
    policy, algorithm = policy_for(case, size, dtype), GRPO() if case == "grpo" else PPO()
    rollout = rollout_of(policy, case, size, varying)
    reference = policy.reference() if case == "grpo" else None
    settings = UpdateSettings(
        rollout_size=ROWS,
        minibatch_size=ROWS,
        microbatch_size=microbatch,
        epochs=1 if case == "grpo" else EPOCHS,
    )
    updater = Updater(policy, settings, 1000, 0, SingleProcess(), LENGTH)
    credit = algorithm.assign_credit(rollout)

    def update() -> None:
        if reference is not None:
            reference.logprobs(rollout.inputs)
        updater.update(algorithm, rollout, credit, 1)

    return update


def in_turns(functions: list[Callable], runs: int) -> list[Seconds]:
    """Median seconds of each, on the clock and of the processor; the first run counts for none."""
    times: list[list[Seconds]] = [[] for _ in functions]
    for _ in range(runs + 1):
        for function, found in zip(functions, times):
            clock, processor = time.perf_counter(), time.process_time()
            function()
            found.append((time.perf_counter() - clock, time.process_time() - processor))
    return [tuple(map(statistics.median, zip(*found[1:]))) for found in times]  # type: ignore


def floor_seconds(case: str, size: str, dtype: str) -> float:
    """What the products of an update take at the very least."""
    left, right = (torch.randn(1024, 1024).to(DTYPES[dtype]) for _ in range(2))
    times = []
    for _ in range(40):
        start = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - start)
    weights = sum(p.numel() for p in policy_for(case, size, dtype).parameters())
    per_weight = 8 if case == "grpo" else 6 * EPOCHS
    return per_weight * weights * ROWS * (PROMPT + LENGTH) * min(times) / (2 * 1024**3)


def measured(case: str, size: str, dtype: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    both = [updating(case, size, dtype, varying, given.microbatch) for varying in (False, True)]
    (seconds, processor), (varying, varying_processor) = in_turns(both, given.runs)
    floor = floor_seconds(case, size, dtype)
    return {
        "case": case,
        "size": size,
        "dtype": dtype,
        "seconds": seconds,
        "cpu_seconds": processor,
        "varying_ratio": varying / seconds,
        "varying_cpu_ratio": varying_processor / processor,
        "floor_seconds": floor,
    }


def main() -> None:
    """Measure case after case and print each as it is known."""
    given = arguments()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as a run does
    print(HEADER, flush=True)
    rows = []
    for size in given.sizes:
        for dtype in given.dtypes:
            for case in given.cases:
                row = measured(case, size, dtype, given)
                rows.append(row)
                print(
                    f"{case:<13}{size:<5}{dtype:<6}{row['seconds']:>7.3f}{row['cpu_seconds']:>8.3f}"
                    f"{row['varying_ratio']:>8.2f} ({row['varying_cpu_ratio']:.2f})"
                    f"{row['floor_seconds']:>9.3f}{row['floor_seconds'] / row['seconds']:>10.2f}",
                    flush=True,
                )
                if given.json:
                    given.json.write_text(json.dumps({"cases": rows}, indent=1))


if __name__ == "__main__":
    main()
