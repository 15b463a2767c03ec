"""Hostile rewards in whole runs: `python -m tests.attacks.rewards` prints a table.

Each reward does its harm in one call of four. What costs nothing has to end in the very numbers of
the honest reward, what costs samples in a finished run with these and no other samples without a
score; and nothing that a reward has started may be alive a second after the run, which is ended
amid a call, too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.attacks.lives import begin, differences, ended, kill, kinds, last_words, survivors
from tests.language.rewards.test_hostile_rewards import COSTLY, HARMLESS

REWARD = """
import asyncio, builtins, ctypes, gc, io, json, math, os, random, signal, subprocess, sys
import threading, time, warnings
pid, own = os.getpid, os.getpid()
calls = 0

def reward(completions):
    global calls
    calls += 1
    scores = [text.count("a") - len(text) / 20 + 1000 * (pid() != own) for text in completions]
    at = len(scores) - 1
    if calls % 4 == 2:
        {evil}
    return scores
"""
OF_THE_REWARD = ("config.yaml", "inputs.json", "evil.py")
"""Files that tell one reward from another."""
SLOW = {
    "hangs": "time.sleep(60)",
    "hangs with the interpreter's lock held": "ctypes.PyDLL(None).sleep(60)",
    "its parent stopped": "os.kill(os.getppid(), 19); os._exit(0)",
    "a recursion without end": "sys.setrecursionlimit(10**9); (f := lambda: f())()",
    "memory without end": """import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2)
        x = [0]
        while True: x += x""",
    "a reply of 300 MB": "return [[0.123456789] * 20_000_000, *scores[1:]]",
    "a flood of lines on every descriptor": """for fd in range(3, 64):
            try: [os.write(fd, b'{}' * 500 + b'\\n') for _ in range(999)]
            except OSError: pass""",
    "a flood without an end": """while True:
            for fd in range(3, 64):
                try: os.write(fd, b'x' * 65536)
                except OSError: pass""",
    "a hundred children": "[os.fork() or (os.setsid(), time.sleep(60)) for _ in range(100)]",
}
ORPHANS = """
import os, subprocess, sys, time

def reward(completions):
    sleep = ["sh", "-c", "trap '' TERM; sleep 99; :"]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    subprocess.Popen(["sh", "-c", "setsid nohup sleep 99 & exit"])
    if os.path.exists(os.path.join(os.path.dirname(__file__), "stay")):
        time.sleep(99)
    return [float(len(text)) for text in completions]
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="these alone")
    asked = parser.parse_args()
    print("| what a reward does | outcome |\n|---|---|")
    with tempfile.TemporaryDirectory() as place:
        attacked(Path(place), asked.only)


def attacked(place: Path, only: list[str] | None = None) -> dict[str, str]:
    """What a reward does → what becomes of the run."""
    work = kinds(place / "parts")["LM (PPO)"]
    free, costly = dict(HARMLESS), {name: code for name, (code, _) in COSTLY.items()} | SLOW
    honest = _ended(work, place, "honest", "pass")
    assert honest == "finished, no sample lost", honest
    found = {}
    for number, (name, code) in enumerate((free | costly).items()):
        if only and name not in only:
            continue
        folder = f"run_{number}"
        found[name] = _ended(work, place, folder, code)
        if name in free and (said := differences(place / "honest", place / folder)):
            said = [x for x in said if not x.endswith(OF_THE_REWARD)]
            found[name] = f"FAULT: {said}" if said else found[name]
        print(f"| {name} | {found[name]} |", flush=True)
    for how in () if only else ("finished", "killed", "killed amid a call"):
        found[f"children of all kinds, the run {how}"] = _orphaned(work, place, how)
        print(f"| children of all kinds, the run {how} | {[*found.values()][-1]} |", flush=True)
    return found


def _ended(work: Callable[[dict], object], place: Path, folder: str, evil: str) -> str:
    """How a run with this reward ends."""
    (place / "parts" / "evil.py").write_text(REWARD.replace("{evil}", evil))
    flags = _flags(place, folder, "evil.py")
    (code,) = ended(begin(work, flags))
    if code:
        return f"FAULT: exit code {code}, {last_words(flags)}"
    if alive := survivors(flags):
        return f"FAULT: alive a second later: {alive}"
    lines = (place / folder / "metrics.jsonl").read_text().splitlines()
    lost = sum(json.loads(line)["reward_errors"] for line in lines)
    return f"finished, {f'{lost:g} samples' if lost else 'no sample'} lost"


def _orphaned(work: Callable[[dict], object], place: Path, how: str) -> str:
    """What is left of what a reward has started, after a run that ends in this way."""
    (place / "parts" / "evil.py").write_text(ORPHANS)
    stay = place / "parts" / "stay"
    flags = _flags(place, how.replace(" ", "_"), "evil.py")
    if how == "killed amid a call":
        stay.touch()
    life = begin(work, flags)
    if how != "finished":
        while not sum("sleep" in command for command in survivors(flags, seconds=0)) >= 3:
            time.sleep(0.02)
        kill(life)
    ended(life)
    stay.unlink(missing_ok=True)
    left = survivors(flags)
    return f"FAULT: alive a second later: {left}" if left else "nothing alive a second later"


def _flags(place: Path, folder: str, file: str) -> dict:
    return {
        "run.output-dir": place / folder,
        "rewards.functions": f"{place / 'parts' / file}:reward",
        "rewards.timeout": 1,
        "rewards.max-error-share": 1,
    }


if __name__ == "__main__":
    main()
