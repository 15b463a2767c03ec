"""What a process holds where weights are shared out, against a replica: GRPO's policy, gradients,
AdamW and reference of a random Llama.

State is all that is alive in tensors after a backward pass, counted by storage; peak is how far
resident memory rises above what the process held before in one iteration: responses, their
reference and an optimizer step. Each number of processes is a run of its own on this machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import num_weights
from lmpg.language.models.start.shared_out import loaded
from lmpg.language.sampling.sampler import Sampler
from lmpg.runtime.machine import give_back_freed_memory
from lmpg.runtime.parts import mine
from lmpg.runtime.processes import Processes, close_process_group
from lmpg.runtime.spread import share
from lmpg.training.optimizer import policy_optimizer, take_step
from lmpg.training.settings import UpdateSettings

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4},
    "64M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16},
}
VOCABULARY = {"tiny": 500, "64M": 24_000}
ROWS, PROMPT, LENGTH = 8, 16, 32


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--size", choices=tuple(SIZES), default="64M")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def policy_of(size: str, *, moved: bool = True) -> CausalLMPolicy:
    """A random policy of that size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY[size],
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=PROMPT + LENGTH,
        tie_word_embeddings=True,
        **SIZES[size],  # type: ignore[arg-type]
    )
    rest: dict[str, Any] = {"eos_token_ids": (1,), "pad_token_id": 0}
    rest |= {"temperature": 1.0, "context_length": PROMPT + LENGTH}
    return CausalLMPolicy(LlamaForCausalLM(config).eval(), None, **rest)


def alive() -> int:
    """Bytes of all tensors of this process, each storage once."""
    gc.collect()
    found: dict[int, int] = {}
    for x in gc.get_objects():
        if isinstance(x, torch.Tensor) and not x.is_meta:
            for part in (x, x.grad if x.is_leaf else None):
                if part is not None:
                    storage = mine(part).untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def measured(size: str, processes: Processes) -> dict[str, float]:
    """Megabytes of state and of the peak above it, and millions of weights; in this process."""
    if processes.count > 1:
        share(processes, (processes.count,))
    policy = loaded(partial(policy_of, size), processes)
    reference = policy.reference()
    settings = UpdateSettings(learning_rate=1e-6)
    optimizer = policy_optimizer(policy, settings)
    sampler = Sampler(policy, LENGTH)
    prompts = torch.randint(2, VOCABULARY[size], (ROWS, PROMPT)).tolist()

    def backward() -> None:
        samples = sampler.sample(prompts, 1, torch.rand(ROWS, LENGTH))
        rows = samples.inputs
        known_BT = reference.logprobs(rows)
        (policy.evaluate(rows).logprobs_BT - known_BT).sum().backward()

    backward()
    take_step(optimizer, settings, processes)  # AdamW has its moments from here on
    give_back_freed_memory()
    backward()
    state = alive()
    take_step(optimizer, settings, processes)
    give_back_freed_memory()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    backward()
    take_step(optimizer, settings, processes)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    found = {"state": state / 1e6, "peak": (peak - before) / 1e6}
    most = {name: max(processes.gather_list([x])) for name, x in found.items()}
    return {"millions": num_weights(policy) / 1e6, **most}


def of_count(count: int, size: str) -> dict[str, float]:
    """The figures of so many processes, those of the largest."""
    own = [str(Path(__file__)), "--rank", "--size", size]
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *own], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{count} processes: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(words: list[str] | None = None) -> None:
    """Measure, print a row for each number of processes, and write the figures."""
    asked = arguments(words)
    if asked.rank:
        processes = Processes(cpu=True)
        found = measured(asked.size, processes)
        if processes.is_main:
            print(json.dumps(found), flush=True)
        close_process_group()
        return
    figures: dict[int, dict[str, float]] = {}
    print("processes  weights (M)  state (MB)  of a replica's  peak above it (MB)")
    for count in asked.processes:
        found = figures[count] = of_count(count, asked.size)
        share_of = found["state"] / figures[asked.processes[0]]["state"]
        print(
            f"{count:9}  {found['millions']:11.1f}  {found['state']:10.1f}  {share_of:14.3f}"
            f"  {found['peak']:18.1f}",
            flush=True,
        )
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
