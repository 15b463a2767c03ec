"""One of several processes is lost: `python -m tests.attacks.ranks` prints how soon the run ends.

torchrun starts two processes of a tiny run, or one on each of two "machines", which see different
folders. One of them is killed, stopped, or has its thread hang; or the launcher gets SIGTERM.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lmpg.runs import checkpoint
from tests.support.programs import ROOT, own_parts, words

TIMEOUT = 6
LONG = {
    "run.output-dir": "run",
    "run.total-steps": 100_000,
    "run.save-every": 1,
    "run.rank-timeout": TIMEOUT,
    "run.report-every": 0,
    "evaluation.size": 1,
}


@dataclass
class Machines:
    """Launchers, one for each machine, and the folders that they were started in."""

    launchers: list[subprocess.Popen[str]]
    folders: list[Path]

    def process_of(self, rank: int) -> psutil.Process:
        """The process of a rank."""
        for launcher in self.launchers:
            for process in psutil.Process(launcher.pid).children():
                if process.environ().get("RANK") == str(rank):
                    return process
        raise AssertionError(f"there is no rank {rank}")

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Returns once the run has done this step."""
        metrics, deadline = self.folders[0] / "run" / "metrics.jsonl", time.monotonic() + seconds
        while not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= step):
            assert time.monotonic() < deadline, self.said()
            assert all(x.poll() is None for x in self.launchers), self.said()
            time.sleep(0.1)

    def said(self) -> str:
        """What all have printed."""
        for launcher in self.launchers:
            launcher.kill()
        return "\n".join("".join(x.communicate()) for x in self.launchers)

    def ended(self, processes: list[psutil.Process], seconds: float = 60) -> float:
        """Seconds until these have ended."""
        began = time.monotonic()
        _, alive = psutil.wait_procs(processes, timeout=seconds)
        assert not alive, self.said()
        return time.monotonic() - began


def launched(
    place: Path, flags: dict[str, Any], machines: int = 1, command: tuple[str, ...] = ()
) -> Machines:
    """Two processes of a run, on one machine or on two."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = command or ("scripts/train_ppo.py",)
    found = Machines([], [])
    for number in range(machines):
        folder = place / f"machine_{number}"
        folder.mkdir(exist_ok=True)
        torchrun = (
            *("-m", "torch.distributed.run", "--nnodes", machines, "--node-rank", number),
            *("--nproc_per_node", 2 // machines, "--master-addr", "localhost"),
            *("--master-port", port, "--monitor-interval", "0.5"),
        )
        line = [*torchrun, ROOT / program[0], *program[1:], *words({**LONG, **flags})]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        env["LMPG_CACHE"] = str(folder / "cache")
        process = subprocess.Popen(
            [sys.executable, *map(str, line)],
            cwd=folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        found.launchers.append(process)
        found.folders.append(folder)
    return found


def lost(
    place: Path, machines: int, rank: int, act: Callable[[psutil.Process], object]
) -> tuple[float, str, int | None]:
    """Seconds from `act` on a rank until the other has ended, what was said, and the newest
    checkpoint's step."""
    place.mkdir()
    made = launched(place, own_parts(place / "parts"), machines)
    made.wait_for_step(2)
    one, other = made.process_of(rank), made.process_of(1 - rank)
    act(one)
    seconds = made.ended([other])
    for process in (one, other):
        if process.is_running():
            process.kill()
    said = "\n".join("".join(x.communicate(timeout=60)) for x in made.launchers)
    lines = [x for x in said.splitlines() if "so the run ends here" in x]
    return (
        seconds,
        lines[0] if lines else said,
        checkpoint.newest_step(made.folders[0] / "run" / "checkpoints"),
    )


def ended_by_its_launcher(place: Path) -> tuple[float, str, int | None]:
    """The same of SIGTERM to the launcher."""
    place.mkdir()
    made = launched(place, {**own_parts(place / "parts"), "run.save-every": 0})
    made.wait_for_step(2)
    processes = [made.process_of(rank) for rank in (0, 1)]
    made.launchers[0].send_signal(signal.SIGTERM)
    seconds = made.ended(processes)
    out, _ = made.launchers[0].communicate(timeout=60)
    return seconds, out, checkpoint.newest_step(made.folders[0] / "run" / "checkpoints")


ACTS: dict[str, Callable[[psutil.Process], object]] = {
    "kill −9": psutil.Process.kill,
    "stopped (SIGSTOP)": psutil.Process.suspend,
}


def main() -> None:
    """The command."""
    with tempfile.TemporaryDirectory() as folder:
        for what, act in ACTS.items():
            for machines in (1, 2):
                for rank in (0, 1):
                    place = Path(folder) / f"{what[:4]}_{machines}_{rank}"
                    seconds, said, step = lost(place, machines, rank, act)
                    row = f"{what} | rank {rank}, machines: {machines} | {seconds:.1f} s"
                    print(f"| {row} | {said[:200]} | {step} |", flush=True)
        seconds, said, step = ended_by_its_launcher(Path(folder) / "term")
        print(f"| SIGTERM to torchrun | both | {seconds:.1f} s | saved | {step} |", flush=True)


if __name__ == "__main__":
    main()
