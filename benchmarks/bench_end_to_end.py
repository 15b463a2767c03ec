"""Seconds per step of whole programs, lmpg against TRL, side by side on the same machine.

GRPO: 64 responses of 64 tokens to 8 prompts of 16 tokens, a reference, one optimizer step.
PPO: 64 responses to 64 prompts, KL to the reference in the reward, 4 epochs, one minibatch of 64,
with the critic on the policy's trunk or on one of its own (TRL has the latter alone). Both sides
log every step. The programs take turns step by step (see `lockstep`); medians are compared, and
TRL counts with whichever of its precisions is the faster (its PPO ignores its bf16 flag).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from floor import step_seconds
from lockstep import Contestant, race
from models import prompts, save

HERE = Path(__file__).resolve().parent
CASES = ("grpo", "ppo_shared", "ppo_separate")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TURNS = {  # size, trainer → dtypes of lmpg, precisions of the peer
    ("S", "grpo"): (["fp32"], ["fp32", "bf16"]),
    ("S", "ppo"): (["fp32"], ["fp32"]),
    ("M", "grpo"): (["bf16", "fp32"], ["fp32", "bf16"]),
    ("M", "ppo"): (["bf16", "fp32"], ["fp32"]),
}
REWARD = """
def multiples(completion_ids, **_):
    return [float(sum(i % 7 == 0 for i in ids)) for ids in completion_ids]
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="python with trl 1.16")
    parser.add_argument("--peer-ppo-path", required=True, help="folder that holds trl 1.12.0")
    parser.add_argument("--sizes", nargs="+", choices=("S", "M"), default=["S", "M"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=7, help="counted steps")
    parser.add_argument("--warm", type=int, default=2, help="steps before them, at least 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpus", help="run on these cores, such as 0,1")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def lmpg_command(case: str, dtype: str, folder: Path, steps: int, threads: int) -> list[str]:
    """The real program, on a user's model, data and reward."""
    algorithm, _, critic = case.partition("_")
    name = f"{case}-{dtype}"
    flags = {
        "model.path": folder / "model",
        "model.precision": dtype,
        "data.path": folder / "prompts.jsonl",
        "data.num-eval": 8,
        "rewards.functions": f"{folder / 'reward.py'}:multiples",
        "sampling.max-new-tokens": 64,
        "update.rollout-size": 64,
        "update.minibatch-size": 64,
        "update.epochs": 4 if critic else 1,
        "algorithm.kl-coef": 0.05 if critic else 0.04,
        "evaluation.size": 8,
        "run.total-steps": steps,
        "run.torch-threads": threads,
        "run.output-dir": folder / "runs" / name,
    }
    if critic:
        flags["model.critic"] = critic
    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    return [sys.executable, str(HERE / "lmpg_steps.py"), "train", algorithm, *given]


def contestants(case: str, size: str, folder: Path, given: argparse.Namespace) -> list[Contestant]:
    """lmpg in every precision, then the peer in every precision."""
    trainer = case.partition("_")[0]
    mine, its = TURNS[size, trainer]
    steps = given.warm + given.steps
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    quiet |= {"OMP_NUM_THREADS": str(given.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    peer_quiet = {**quiet, "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    peer_quiet["PYTHONPATH"] = given.peer_ppo_path if trainer == "ppo" else ""
    found = []
    for dtype in mine:
        command = lmpg_command(case, dtype, folder, steps, given.threads)
        name = f"lmpg {dtype}"
        environment = {**quiet, "PYTHONPATH": str(HERE.parent)}
        found.append(Contestant(name, command, environment, folder / f"{case} {name}.log"))
    for dtype in its:
        script = HERE / "peers" / f"{trainer}_steps.py"
        command = [given.peer_python, str(script), str(folder / "model"), size]
        command += ["--steps", str(steps), "--precision", dtype]
        name = f"peer {dtype}"
        found.append(Contestant(name, command, peer_quiet, folder / f"{case} {name}.log"))
    return found


def measured(case: str, size: str, folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per precision of lmpg."""
    told = race(contestants(case, size, folder, given), given.warm, given.steps)
    seconds = {name: statistics.median(x["seconds"] for x in rows) for name, rows in told.items()}
    peer = min((name for name in told if name.startswith("peer")), key=seconds.__getitem__)
    alike = sum(name.startswith("lmpg") for name in told) > 1
    rows = []
    for name in told:
        who, dtype = name.split()
        if who != "lmpg":
            continue
        phases = told[name][0]["phases"]
        against = "peer fp32" if alike and dtype == "fp32" else peer
        row = {
            "case": case,
            "size": size,
            "dtype": dtype,
            "seconds": seconds[name],
            "peer_seconds": seconds[against],
            "floor_seconds": step_seconds(case, size, DTYPES[dtype]),
            "peer_dtype": against.split()[1],
            "peers": {n.split()[1]: seconds[n] for n in told if n.startswith("peer")},
            "spread": [f(x["seconds"] for x in told[name]) for f in (min, max)],
            "lengths": [statistics.mean(x["length"] for x in told[n]) for n in (name, against)],
            "peak_gb": [told[n][-1]["peak_gb"] for n in (name, against)],
            "phases": {k: statistics.median(x["phases"][k] for x in told[name]) for k in phases},
        }
        row["ratio"] = row["peer_seconds"] / row["seconds"]
        rows.append(row)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    lengths = "/".join(f"{x:.1f}" for x in row["lengths"])
    memory = "/".join(f"{x:.2f}" for x in row["peak_gb"])
    return (
        f"{row['case']:<13}{row['size']:<3}{row['dtype']:<6}{row['seconds']:>8.3f}"
        f"{row['peer_seconds']:>8.3f} {row['peer_dtype']:<6}{row['ratio']:>6.2f}"
        f"{row['floor_seconds']:>8.3f}  {lengths:<11}{memory}"
    )


def main() -> None:
    """Measure case after case and print each as it is known."""
    given = arguments()
    if given.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
    torch.set_num_threads(given.threads)
    print("case         size  lmpg s  peer s        ratio   floor  lengths    peak GB", flush=True)
    rows = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save(size, folder / "model")
            lines = [json.dumps({"prompt": text}) for text in prompts(size, 256)]
            (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
            (folder / "reward.py").write_text(REWARD)
            for case in given.cases:
                for row in measured(case, size, folder, given):
                    rows.append(row)
                    print(line(row), flush=True)
                    if given.json:
                        given.json.write_text(json.dumps({"cases": rows}, indent=1))


if __name__ == "__main__":
    main()
