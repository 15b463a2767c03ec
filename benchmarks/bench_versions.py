"""Seconds per step of whole programs, this checkout of lmpg against another, in one race.

The work is that of `bench_end_to_end.py`; `ratio` is the other checkout's median seconds per step
over this one's (above 1: this one is faster), `cpu` the same of processor time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from bench_end_to_end import CASES
from lockstep import race
from sides import Place


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout, such as a git worktree")
    parser.add_argument("--sizes", nargs="+", choices=("S", "M"), default=["S", "M"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--steps", type=int, default=7, help="counted steps")
    parser.add_argument("--warm", type=int, default=2, help="steps before them, at least 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpus", help="run on these cores, such as 0,1")
    return parser.parse_args()


def line(case: str, dtype: str, place: Place, given: argparse.Namespace) -> str:
    """A row of the table."""
    mine = place.lmpg(case, dtype)
    other = place.lmpg(case, dtype, given.other.resolve())
    told = race([mine, other], given.warm, given.steps)
    seconds, cpu = (
        [statistics.median(x[key] for x in told[side.name]) for side in (mine, other)]
        for key in ("seconds", "cpu_seconds")
    )
    return (
        f"{case:<13}{place.size:<5}{dtype:<6}{seconds[0]:>8.3f}{seconds[1]:>9.3f}"
        f"{seconds[1] / seconds[0]:>7.3f}{cpu[1] / cpu[0]:>7.3f}"
    )


def main() -> None:
    """Measure case after case and print each as it is known."""
    given = arguments()
    if given.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
    print("case         size dtype  this s  other s  ratio    cpu", flush=True)
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder), size, given.warm + given.steps, given.threads)
            for case in given.cases:
                for dtype in given.dtypes:
                    print(line(case, dtype, place, given), flush=True)


if __name__ == "__main__":
    main()
