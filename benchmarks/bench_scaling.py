"""Strong scaling: the same update by 1, 2, 4 … processes, as many as there are cores, each on its
own.

The update is that of bench_update (64 responses of 64 tokens), shared out. `speed-up` is to the
first row, `cpu s` processor time of the slowest rank, `sent MB` what a rank gives to the system to
send in an update, `of least` that to what a sum over N processes must send at least: 2·(N−1)/N
times the gradients' bytes (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench_update import CASES, LENGTH, ROWS, policy_for, rollout_of

from lmpg.algorithms.grpo import GRPO
from lmpg.algorithms.ppo import PPO
from lmpg.runtime.machine import keep_freed_memory
from lmpg.runtime.processes import Processes, close_process_group
from lmpg.training.settings import UpdateSettings
from lmpg.training.update import Updater

HEADER = "case         size  processes  seconds  speed-up   cpu s  sent MB  of least"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="grpo")
    parser.add_argument("--size", default="M", help="of models.py")
    parser.add_argument("--processes", nargs="+", type=int, help="left out: 1, 2, 4 … to the cores")
    parser.add_argument("--microbatch", type=int, default=16, help="rows of a micro-batch")
    parser.add_argument("--runs", type=int, default=3, help="timed updates: the median counts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    given.processes = given.processes or [n for n in (1, 2, 4, 8, 16) if n <= cores]
    if max(given.processes) > cores:
        parser.error(
            f"--processes {max(given.processes)}: expected {cores} at most, one for a core"
        )
    return given


def of_rank(given: argparse.Namespace) -> dict[str, float]:
    """The figures of this process, which is one of several."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    torch.set_num_threads(1)
    keep_freed_memory()
    policy = policy_for(given.case, given.size, "fp32")
    rollout = rollout_of(policy, given.case, given.size, varying=False)
    algorithm: Any = GRPO() if given.case == "grpo" else PPO()
    rows = {"rollout_size": ROWS, "minibatch_size": ROWS, "microbatch_size": given.microbatch}
    processes, settings = Processes(cpu=True), UpdateSettings(**rows, epochs=1)
    updater = Updater(policy, settings, 1000, 0, processes, LENGTH)
    credit = algorithm.assign_credit(rollout)
    found = []
    for step in range(given.runs + 1):
        processes.wait()
        before = time.perf_counter(), time.process_time(), bytes_sent()
        updater.update(algorithm, rollout, credit, step + 1)
        after = time.perf_counter(), time.process_time(), bytes_sent()
        found.append([new - old for new, old in zip(after, before)])
    seconds, processor, sent = map(statistics.median, zip(*found[1:]))
    trained = sum(p.nbytes for p in policy.parameters() if p.requires_grad)
    return {"seconds": seconds, "cpu": processor, "sent": sent, "gradients": trained}


def bytes_sent() -> int:
    """Bytes that this process has given to the system to write, to sockets among them."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def figures(given: argparse.Namespace, count: int) -> dict[str, float]:
    """The slowest of `count` processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["--rank", "--case", given.case, "--size", given.size]
    words += ["--runs", str(given.runs), "--microbatch", str(given.microbatch)]
    members = []
    for rank in range(count):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        members.append(
            subprocess.Popen(
                [sys.executable, __file__, *words],
                env={**os.environ, **{name: str(value) for name, value in env.items()}},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    found = [json.loads(member.communicate()[0].splitlines()[-1]) for member in members]
    worst = {name: max(x[name] for x in found) for name in found[0]}
    least = 2 * (count - 1) / count * worst["gradients"]
    return {**worst, "processes": count, "of_least": worst["sent"] / least if least else 1.0}


def line(given: argparse.Namespace, x: dict[str, float], alone: float) -> str:
    """A row of the table."""
    return (
        f"{given.case:<13}{given.size:<6}{x['processes']:>9}{x['seconds']:>9.2f}"
        f"{alone / x['seconds']:>9.2f}x{x['cpu']:>8.2f}"
        f"{x['sent'] / 1e6:>9.1f}{x['of_least']:>10.3f}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each number of processes and print it as it is known."""
    given = arguments(argv)
    if given.rank:
        print(json.dumps(of_rank(given)), flush=True)
        close_process_group()
        return
    print(HEADER, flush=True)
    rows: list[dict[str, float]] = []
    for count in given.processes:
        rows.append(figures(given, count))
        print(line(given, rows[-1], rows[0]["seconds"]), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"case": given.case, "size": given.size, "rows": rows}))


if __name__ == "__main__":
    main()
