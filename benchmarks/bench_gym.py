"""PPO on environments, lmpg against Stable-Baselines3, one thread, taking turns.

to_475: seconds of training, evaluations excluded, until three evaluations in a row (100 episodes
of the most likely actions, one per 2,048 steps) have a mean return of at least 475 on CartPole-v1;
means over seeds. lmpg runs the preset `ppo_cartpole_fast`, which was tuned on seeds from 100 on;
SB3 with the RL Zoo's settings and with its defaults. One process after the other, seed by seed.

steps: environment steps per second with the same settings and networks on both sides, whole
iterations with their logs, in lockstep; medians. zoo: CartPole-v1 with the RL Zoo's settings;
mujoco: HalfCheetah-v5 with SB3's defaults, observations and rewards normalised.

threads: lmpg's zoo case with one thread, its default, against as many as torch and numpy like.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lockstep import Contestant, race

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "lmpg" / "presets" / "gym"
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
ZOO = (  # the RL Zoo's settings for CartPole-v1
    "--update.rollout-size 256 --update.minibatch-size 256 --update.microbatch-size 512 "
    "--update.epochs 20 --update.learning-rate 1e-3 --update.schedule linear --update.anneal clip "
    "--algorithm.gamma 0.98 --algorithm.lam 0.8"
)
EQUAL = {  # case → preset, and flags that make it what the peer does
    "zoo": ("ppo_cartpole.yaml", *ZOO.split()),
    "mujoco": ("ppo_halfcheetah.yaml", "--update.schedule", "constant"),
}
SIZES = {"zoo": 256, "mujoco": 2048}  # steps of a rollout
WARM = 2  # iterations that are not counted
CASES = ("to_475", "zoo", "mujoco", "threads")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="python with stable-baselines3; none: lmpg alone")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--zoo-iterations", type=int, default=150, help="counted ones of 256 steps")
    parser.add_argument("--mujoco-iterations", type=int, default=9, help="of 2,048 steps")
    parser.add_argument("--quick", action="store_true", help="1 seed, 3 iterations: does it run?")
    parser.add_argument("--cpus", help="run on these cores, such as 0,1")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args(argv)
    if given.quick:
        given.seeds, given.zoo_iterations, given.mujoco_iterations = given.seeds[:1], 3, 3
    return given


def environment(threads: int) -> dict[str, str]:
    """What both sides are started with; the peer finds no lmpg."""
    return {**QUIET, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


def mine(what: str, folder: Path, flags: list[str]) -> list[str]:
    """A run of lmpg that saves and evaluates nothing it is not asked to."""
    few = ["--run.save-every", "0", "--run.output-dir", str(folder)]
    return [sys.executable, str(HERE / "gym_steps.py"), what, *flags, *few]


def path() -> dict[str, str]:
    """lmpg's side finds this checkout first."""
    return {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}


def seconds_to_475(command: list[str], variables: dict[str, str]) -> dict[str, Any]:
    """What one training run printed of itself."""
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"found"')]
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])["found"] if lines else {"seconds": None, "steps": None}


def to_475(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row per side: mean, worst, failures; and how many times as fast lmpg is."""
    found: dict[str, list[dict[str, Any]]] = {"lmpg fast": []}
    config = ["--config", str(CONFIGS / "ppo_cartpole_fast.yaml"), "--run.seed"]
    for seed in given.seeds:
        run = mine("to_475", folder / f"fast-{seed}", [*config, str(seed)])
        found["lmpg fast"].append(seconds_to_475(run, {**environment(1), **path()}))
        for case in ("zoo", "default") if given.peer_python else ():
            peer = [given.peer_python, str(HERE / "peers" / "sb3_gym.py"), "to_475", case]
            told = seconds_to_475([*peer, "--seed", str(seed)], environment(1))
            found.setdefault(f"sb3 {case}", []).append(told)
    rows = []
    for name, runs in found.items():
        reached = [run for run in runs if run["seconds"] is not None]
        row: dict[str, Any] = {"case": "to_475", "side": name, "failed": len(runs) - len(reached)}
        if reached:
            row["seconds"] = statistics.mean(run["seconds"] for run in reached)
            row["worst"] = max(run["seconds"] for run in reached)
            row["steps"] = statistics.mean(run["steps"] for run in reached)
            row["ratio"] = row["seconds"] / rows[0]["seconds"] if rows else 1.0
        rows.append({**row, "runs": runs})
    return rows


def equal(case: str, given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Steps per second of both sides in lockstep, whose medians are compared."""
    iterations = getattr(given, f"{case}_iterations") + WARM
    sides = [contestant("lmpg", case, iterations, 1, folder / case)]
    if given.peer_python:
        peer = [given.peer_python, str(HERE / "peers" / "sb3_gym.py"), "steps", case]
        peer += ["--iterations", str(iterations)]
        sides.append(Contestant("sb3", peer, environment(1), folder / f"{case}-sb3.log"))
    return compared(case, race(sides, WARM, iterations - WARM), SIZES[case])


def threads(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The zoo case on one thread and on as many as there are cores."""
    iterations, cores = given.zoo_iterations + WARM, len(os.sched_getaffinity(0))
    sides = [
        contestant(f"lmpg, {name}", "zoo", iterations, count, folder / name.replace(" ", "-"))
        for name, count in (("one thread", 1), (f"all {cores}", cores))
    ]
    return compared("threads", race(sides, WARM, given.zoo_iterations), SIZES["zoo"])


def contestant(name: str, case: str, iterations: int, threads: int, output: Path) -> Contestant:
    """lmpg on a case, told how many threads to use."""
    preset, *flags = EQUAL[case]
    flags += ["--run.total-timesteps", str(iterations * SIZES[case]), "--evaluation.size", "1"]
    flags += ["--run.torch-threads", str(threads)]
    run = mine("steps", output, ["--config", str(CONFIGS / preset), *flags])
    log = output.with_suffix(".log")
    return Contestant(name, run, {**environment(threads), **path()}, log)


def compared(case: str, told: dict[str, list[dict[str, Any]]], size: int) -> list[dict[str, Any]]:
    """A row per side, the first one's speed in that of each."""
    rows: list[dict[str, Any]] = []
    for name, turns in told.items():
        seconds = statistics.median(x["seconds"] for x in turns)
        row = {"case": case, "side": name, "seconds": seconds, "per_second": size / seconds}
        row["cpu_seconds"] = statistics.median(x["cpu_seconds"] for x in turns)
        phases = turns[0].get("phases", {})
        row["phases"] = {k: statistics.median(x["phases"].get(k, 0) for x in turns) for k in phases}
        rows.append({**row, "ratio": seconds / rows[0]["seconds"] if rows else 1.0})
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    start = f"{row['case']:<8} {row['side']:<16}"
    if "per_second" in row:
        return f"{start}{row['per_second']:>10,.0f} steps/s{row['ratio']:>8.2f}x"
    if "seconds" not in row:
        return f"{start}all {row['failed']} failed"
    return (
        f"{start}{row['seconds']:>10.2f} s, worst {row['worst']:.2f}{row['ratio']:>8.2f}x"
        f"{row['steps']:>9,.0f} steps, {row['failed']} of {len(row['runs'])} failed"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure case after case and print each as it is known."""
    given = arguments(argv)
    if given.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in given.cases:
            measure = {"to_475": to_475, "threads": threads}.get(case)
            found = measure(given, folder) if measure else equal(case, given, folder)
            print("\n".join(map(line, found)), flush=True)
            rows += found
            if given.json:
                given.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
