"""Small runs of every kind in processes that can be killed, and what tells two runs apart.

A run is forked from this process, which has imported everything, so that a life takes a second
or two; several ranks are several forks, as a launcher would start them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import peft
import torch

import lmpg.gym.program
import lmpg.language.program
import lmpg.language.stages.program
import lmpg.language.worlds.registry
from lmpg.cli.command import run
from lmpg.cli.main import main, train_agent
from lmpg.runs import checkpoint
from tests.support.programs import ROOT, bytes_of, own_parts, words

IMPORTED = (gymnasium, peft, lmpg)
MARK = "LMPG_ATTACKED_RUN"  # in the environment of all that a run starts
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
CLOCKS = ("time/", "perf/", "seconds", "tokens_per_second", "steps_per_second")
OFTEN = {"run.total-steps": 4, "run.save-every": 1, "evaluation.every": 2}
AGENT = {
    "env.id": "CartPole-v1",
    "update.rollout-size": 128,
    "update.minibatch-size": 64,
    "env.num-envs": 4,
    "evaluation.size": 2,
    "evaluation.every": 4,
    "run.save-every": 1,
    "run.total-timesteps": 1100,
}
RANKS = {"two processes": 2}
Life = list[int]
"""The ranks' process ids, the first of which leads their process group."""


def kinds(folder: Path) -> dict[str, Callable[[dict], object]]:
    """Kind of run → a function that carries it out with further flags."""
    torch.set_num_threads(1)
    parts = own_parts(folder)
    pairs = folder / "pairs.jsonl"
    rows = [
        {"prompt": "ab cd "[: 1 + i % 6], "chosen": f"fine {i}", "rejected": "po or"[: i % 5 + 1]}
        for i in range(24)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    online = {**parts, **OFTEN, "update.learning-rate": 1e-3}
    offline = {
        "model.path": parts["model.path"],
        "data.path": pairs,
        "update.minibatch-size": 8,
        "update.microbatch-size": 4,
        "update.learning-rate": 1e-3,
        "run.save-every": 1,
        "evaluation.every": 1,
    }
    stages = {**offline, "model.path": parts["model.path"], **_only("ppo", online)}

    def trained(method: str, flags: dict) -> Callable[[dict], object]:
        return lambda more: run(["train", method, *words({**flags, **more})])

    return {
        "LM (PPO)": trained("ppo", {**online, "algorithm.kl-target": 0.01}),
        "LoRA": trained("ppo", {**online, "model.lora.rank": 4}),
        "DPO": trained("dpo", offline),
        "gym": lambda more: train_agent(words({**AGENT, **more})),
        "pipeline": lambda more: run(["pipeline", "sft", "dpo", "ppo", *words({**stages, **more})]),
        "two processes": trained("ppo", online),
    }


def _only(stage: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Flags that go to one stage of a pipeline, whose model is that of the stage before."""
    return {f"{stage}.{name}": value for name, value in flags.items() if name != "model.path"}


def begin(work: Callable[[dict], object], flags: dict, ranks: int = 1, at: int = 0) -> Life:
    """Starts a life; at: it kills itself when it touches its folder for that time (< 0: counts)."""
    port = _free_port()
    life: Life = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.setpgid(0, life[0] if life else 0)
            _live(work, flags, rank, ranks, port, at if rank == 0 else 0)
        life.append(child)
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.setpgid(child, life[0])
    return life


def ended(life: Life, timeout: float = 300) -> list[int]:
    """The ranks' exit codes, −signal where one ended them; a life that hangs is killed."""
    codes, until = [], time.monotonic() + timeout
    for process in life:
        while not (found := os.waitpid(process, os.WNOHANG))[0]:
            if time.monotonic() > until:
                kill(life)
            time.sleep(0.005)
        codes.append(os.waitstatus_to_exitcode(found[1]))
    return codes


def kill(life: Life) -> None:
    """SIGKILL for all ranks at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(life[0], signal.SIGKILL)


def survivors(flags: dict, seconds: float = 1.0) -> list[str]:
    """Command lines of what a dead run has started and what still runs after so many seconds."""
    until = time.monotonic() + seconds
    while found := [_command(p) for p in Path("/proc").glob("[0-9]*") if _is_marked(p, flags)]:
        if time.monotonic() > until:
            return found
        time.sleep(0.02)
    return []


def last_words(flags: dict) -> str:
    """The last line of what a run has said."""
    lines = Path(f"{flags['run.output-dir']}.log").read_text(errors="replace").splitlines()
    return (lines or ["nothing was said"])[-1][:200]


def print_rows(found: dict[str, Counter[str]], columns: tuple[str, ...]) -> None:
    """A row of a table for each: its counts in the columns, and all other counts as faults."""
    for name, counts in found.items():
        faults = "; ".join(f"{n} × {what}" for what, n in counts.items() if what not in columns)
        print(f"| {name} | {' | '.join(str(counts[c]) for c in columns)} | {faults or 'none'} |")


def differences(whole: Path, other: Path) -> list[str]:
    """What tells a run's folder from that of one that nobody interrupted; clocks are left out."""
    names = [{str(p.relative_to(x)) for p in x.rglob("*") if p.is_file()} for x in (whole, other)]
    found = [f"missing: {name}" for name in sorted(names[0] - names[1])]
    found += [f"left over: {name}" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if not _are_equal(whole, other, name):
            found.append(f"different: {name}")
    return found


def _are_equal(whole: Path, other: Path, name: str) -> bool:
    try:
        return _content(whole, name) == _content(other, name)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False  # it is damaged still


def _content(folder: Path, name: str) -> Any:
    """What must be equal in two runs: all but what a clock decides and where they lie."""
    path = folder / name
    if path.name == "report.html":
        return path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    if path.name == "metrics.jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "summary.json":
        return _timeless(json.loads(path.read_text().replace(str(folder), "")))
    if path.name == "state.json":
        newest = checkpoint.newest(path.parent.parent)
        assert newest is not None
        newest[1]["tracker"].pop("metrics")  # how long a file is whose numbers clocks decide
        return _timeless(bytes_of(newest[1]))
    if path.name == checkpoint.MANIFEST:
        return set(json.loads(path.read_text())["files"])  # beside sums of what is read anyway
    return path.read_bytes().replace(str(folder).encode(), b"")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        items = ((str(key), item) for key, item in value.items())
        return {key: _timeless(item) for key, item in items if not key.startswith(CLOCKS)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _live(
    work: Callable[[dict], object], flags: dict, rank: int, ranks: int, port: int, at: int
) -> None:
    """A rank, from its first line to its exit code; never returns."""
    folder = str(flags["run.output-dir"])
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(ROOT)
    os.environ[MARK] = _mark(flags)
    if ranks > 1:
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in world.items()})
    if at:
        sys.addaudithook(_fuse(folder, at))
    code: Any = 1
    try:
        main(lambda: work(flags))
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _fuse(folder: str, at: int) -> Callable[[str, tuple], None]:
    """An audit hook that kills all ranks when the folder is touched for the `at`-th time.

    Where `at` is negative it counts: a line in FOLDER.touches is a time.
    """
    burnt = 0

    def burn(event: str, arguments: tuple) -> None:
        nonlocal burnt
        if event in TOUCHES and str(arguments[0]).startswith(f"{folder}/"):
            burnt += 1
            if burnt == at:
                os.killpg(0, signal.SIGKILL)
            if at < 0:
                with open(f"{folder}.touches", "a") as file:
                    file.write(f"{event} {arguments[0]}\n")

    return burn


def _mark(flags: dict) -> str:
    return uuid.uuid5(uuid.NAMESPACE_URL, str(flags["run.output-dir"])).hex


def _is_marked(process: Path, flags: dict) -> bool:
    try:
        return f"{MARK}={_mark(flags)}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
