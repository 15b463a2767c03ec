"""Seconds per step of whole programs, lmpg against TRL, side by side on the same machine.

GRPO: 64 responses of 64 tokens to 8 prompts of 16 tokens, a reference, one optimizer step.
PPO: 64 responses to 64 prompts, KL to the reference in the reward, 4 epochs, one minibatch of 64,
with the critic on the policy's trunk or on one of its own (TRL has the latter alone). Both sides
log every step. The programs take turns step by step (see `lockstep`) and medians are compared:
with whichever of TRL's precisions is the faster (its PPO ignores its bf16 flag), where lmpg runs in
both precisions its fp32 with TRL's fp32. `fastest` is the ratio to the fastest way found to run
TRL in, by loading its model with attn_implementation="eager" too; `cpu` that of processor time,
which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from floor import step_seconds
from lockstep import race
from models import SIZES
from sides import Place

CASES = ("grpo", "ppo_shared", "ppo_separate")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TURNS = {  # size, trainer → precisions of lmpg, settings of the peer
    ("S", "grpo"): (["fp32", "bf16"], ["fp32", "bf16", "fp32 eager"]),
    ("S", "ppo"): (["fp32", "bf16"], ["fp32"]),
    ("M", "grpo"): (["bf16", "fp32"], ["fp32", "bf16", "bf16 eager"]),
    ("M", "ppo"): (["bf16"], ["fp32"]),
    ("brought", "grpo"): (["bf16"], ["fp32", "bf16"]),
    ("brought", "ppo"): (["bf16"], ["fp32"]),
}
HEADER = (
    "case         size     dtype  lmpg s  peer s dtype  ratio fastest   cpu floor s  lengths    "
    "peak GB"
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="python with trl 1.16")
    parser.add_argument("--peer-ppo-path", required=True, help="folder that holds trl 1.12.0")
    parser.add_argument("--sizes", nargs="+", choices=("S", "M"), default=["S", "M"])
    parser.add_argument("--model", help="race with this model (folder or Hub id), not with sizes")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=7, help="counted steps")
    parser.add_argument("--warm", type=int, default=2, help="steps before them, at least 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="tokens per response")
    parser.add_argument("--microbatch", type=int, default=64, help="rows per forward, both sides")
    parser.add_argument("--cpus", help="run on these cores, such as 0,1")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def measured(case: str, place: Place, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per precision of lmpg."""
    size = place.size if place.size in SIZES else "brought"
    mine, its = TURNS[size, case.partition("_")[0]]
    contestants = [place.lmpg(case, dtype) for dtype in mine]
    contestants += [place.peer(case, x, given.peer_python, given.peer_ppo_path) for x in its]
    told = race(contestants, given.warm, given.steps)
    seconds = {name: statistics.median(x["seconds"] for x in rows) for name, rows in told.items()}
    peers = [f"peer {setting}" for setting in its]
    best = min((x for x in peers if not x.endswith("eager")), key=seconds.__getitem__)
    rows = []
    for dtype in mine:
        name = f"lmpg {dtype}"
        peer = "peer fp32" if dtype == "fp32" and len(mine) > 1 else best
        row = {
            "case": case,
            "size": Path(place.size).name,
            "dtype": dtype,
            "seconds": seconds[name],
            "peer_seconds": seconds[peer],
            "ratio": seconds[peer] / seconds[name],
            "ratio_to_fastest": min(seconds[x] for x in peers) / seconds[name],
            "peer_dtype": peer.split()[1],
            "floor_seconds": step_seconds(case, place.shape, DTYPES[dtype], given.length),
        }
        rows.append(row | details(told, name, peer) | {"all_seconds": seconds})
    return rows


def details(told: dict[str, list[dict[str, Any]]], name: str, peer: str) -> dict[str, Any]:
    """Proof that both did the same work, their memory, and where lmpg's time went."""
    phases = told[name][0]["phases"]
    mine, its = (statistics.median(x["cpu_seconds"] for x in told[n]) for n in (name, peer))
    return {
        "cpu_seconds": mine,
        "peer_cpu_seconds": its,
        "spread": [f(x["seconds"] for x in told[name]) for f in (min, max)],
        "lengths": [statistics.mean(x["length"] for x in told[n]) for n in (name, peer)],
        "peak_gb": [told[n][-1]["peak_gb"] for n in (name, peer)],
        "phases": {k: statistics.median(x["phases"].get(k, 0) for x in told[name]) for k in phases},
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table; lengths and memory are lmpg's and the peer's."""
    lengths = "/".join(f"{x:.1f}" for x in row["lengths"])
    memory = "/".join(f"{x:.2f}" for x in row["peak_gb"])
    cpu = row["peer_cpu_seconds"] / row["cpu_seconds"]
    return (
        f"{row['case']:<13}{row['size'][:8]:<9}{row['dtype']:<6}{row['seconds']:>7.3f}"
        f"{row['peer_seconds']:>8.3f} {row['peer_dtype']:<6}{row['ratio']:>5.2f}x"
        f"{row['ratio_to_fastest']:>7.2f}x{cpu:>5.2f}x"
        f"{row['floor_seconds']:>8.3f}  {lengths:<11}{memory}"
    )


def main() -> None:
    """Measure case after case and print each as it is known."""
    given = arguments()
    if given.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
    torch.set_num_threads(given.threads)
    print(HEADER, flush=True)
    rows = []
    for size in [given.model] if given.model else given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            options = {"length": given.length, "microbatch": given.microbatch}
            place = Place(Path(folder), size, given.warm + given.steps, given.threads, options)
            for case in given.cases:
                for row in measured(case, place, given):
                    rows.append(row)
                    print(line(row), flush=True)
                    if given.json:
                        given.json.write_text(json.dumps({"cases": rows}, indent=1))


if __name__ == "__main__":
    main()
