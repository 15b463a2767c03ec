"""Rewards that break what their process works with cost nothing, or the samples of one batch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmpg.language.rewards.scorer import Scorer, Scores
from lmpg.language.rewards.settings import RewardSettings
from tests.support.planted import catches

HONEST = """
import asyncio, builtins, ctypes, gc, io, json, math, os, random, signal, sys, threading, time
import warnings
pid, own = os.getpid, os.getpid()

def reward(completions):
    scores = [float(len(text)) + 1000 * (pid() != own) for text in completions]
    if "evil" in completions:
        at = completions.index("evil")
        {evil}
    return scores
"""
HARMLESS = {
    "stdout closed": "sys.stdout.close()",
    "stderr closed": "sys.stderr.close()",
    "stdout replaced by a closed file": "with open(os.devnull, 'w') as sys.stdout: print('noise')",
    "stdout replaced by None": "sys.stdout = sys.stderr = None",
    "stdout deleted": "del sys.stdout",
    "stdout whose flush raises": "sys.stdout = type('S', (), {'flush': lambda self: sys.exit()})()",
    "descriptor 1 closed": "os.close(1)",
    "descriptors 0, 1 and 2 closed": "os.closerange(0, 3)",
    "json.dumps replaced": "json.dumps = lambda *a, **k: 'not json'",
    "json emptied": "[vars(json).pop(x, 0) for x in ('dumps', 'loads', 'JSONEncoder')]",
    "os.write and os.getpid replaced": "os.write = os.getpid = lambda *a: 0",
    "math.isfinite replaced": "math.isfinite = lambda x: False",
    "modules forgotten": "sys.modules.clear()",
    "a child that leaves by sys.exit": "os.fork() or sys.exit(0)",
    "a child that returns": "os.fork()",
    "a child that raises": "if not os.fork(): raise ValueError",
    "a child that the C library forks": "ctypes.CDLL(None).fork()",
    "a child that goes on beside it": "os.fork() or time.sleep(60)",
    "megabytes printed": "print('x' * 4_000_000)",
    "bytes printed that are no text": "os.write(1, bytes(range(256)))",
    "stdin read": "assert sys.stdin.read() == '' and os.read(0, 9) == b''",
    "a forged reply": """for fd in range(3, 64):
            try: os.write(fd, b'{"id": "0", "scores": [-9.0, -9.0], "problems": {}}\\n')
            except OSError: pass""",
    "half a line on every descriptor": """for fd in range(3, 64):
            try: os.write(fd, b'{"scores')
            except OSError: pass""",
    "another working directory": "os.chdir('/')",
    "the environment emptied": "os.environ.clear()",
    "signal handlers replaced": "[signal.signal(x, signal.SIG_IGN) for x in (15, 10, 12, 17)]",
    "signals blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))",
    "a session of its own": "os.fork() or (os.setsid(), time.sleep(60))",
    "descriptors used up": """held = reward.held = []
        try:
            while True: held.append(open(os.devnull))
        except OSError: pass""",
    "the event loop closed": "asyncio.set_event_loop(None)",
    "a thread that never ends": "threading.Thread(target=time.sleep, args=(99,)).start()",
    "rounding, collecting and seeds": "random.seed(0); gc.disable(); sys.setrecursionlimit(10**6)",
    "warnings that are errors": "warnings.simplefilter('error'); warnings.resetwarnings()",
}
COSTLY = {
    "all descriptors closed": ("os.closerange(3, 256)", "ended with exit code 1|closed the desc"),
    "os._exit": ("os._exit(0)", "ended with exit code 0"),
    "sys.exit": ("sys.exit('enough')", "SystemExit: enough"),
    "an exception of its own kind": ("raise type('Odd', (BaseException,), {})('x')", "Odd: x"),
    "an exception that cannot be told": (
        "raise type('Dumb', (Exception,), {'__str__': lambda self: 1 / 0})()",
        r"Dumb \(mine.py",
    ),
    "an interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "deep recursion": ("(f := lambda: f())()", "RecursionError"),
    "the JSON encoder replaced": ("json.JSONEncoder.iterencode = None", "exit code 1"),
    "killed by itself": ("os.kill(0, 9)", "killed by SIGKILL"),
    "its parent killed": ("os.kill(os.getppid(), 9); time.sleep(60)", "killed by SIGKILL"),
    "ended by a signal without a name": ("os.kill(os.getpid(), 40)", "exit code 168"),
    "an alarm": ("signal.setitimer(signal.ITIMER_REAL, 0.1); time.sleep(60)", "SIGALRM"),
    "NaN": ("scores[at] = float('nan')", "it returned nan"),
    "an integer beyond floats": ("scores[at] = 10 ** 400", "OverflowError"),
    "a set": ("return {1.0 * i for i in range(len(scores))}", "returned a set"),
    "bytes": ("return bytearray(len(scores))", "returned a bytearray"),
    "a text among them": ("scores[at] = bytearray(b'1')", "a bytearray among"),
    "a number that exits": (
        "scores[at] = type('N', (), {'__float__': lambda self: sys.exit(3)})()",
        "SystemExit: 3",
    ),
    "a range of a million million": ("return range(10**12)", "returned 1000000000000 scores"),
    "a length that lies": (
        "return type('L', (), {'__len__': lambda self: len(scores), "
        "'__iter__': lambda self: iter(int, 1)})()",
        None,
    ),
    "nothing": ("return None", "returned a NoneType"),
    "a generator": ("return (x for x in scores)", "returned a generator"),
}


@pytest.fixture
def hostile(tmp_path: Path):
    made: list[Scorer] = []

    def make(evil: str) -> Scorer:
        (tmp_path / "mine.py").write_text(HONEST.replace("{evil}", evil))
        settings = RewardSettings(functions=(f"{tmp_path / 'mine.py'}:reward",), timeout=5)
        made.append(Scorer(settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def scored(scorer: Scorer, *completions: str) -> Scores:
    count = len(completions)
    return scorer.score(["p"] * count, list(completions), [[7]] * count, {})


@catches(
    "a child that the function has forked replies too",
    "the first line that comes is the reply",
    "sys.stdout flushed unguarded before a reply",
    "json.dumps looked up when it is called",
)
@pytest.mark.parametrize("evil", HARMLESS)
def test_what_a_function_does_to_its_own_process_costs_nothing(hostile, evil):
    scorer = hostile(HARMLESS[evil])
    for batch in (["a", "evil"], ["abc"], ["evil", "ab", "a"], ["abcd", "ab"]):
        scores = scored(scorer, *batch)
        assert scores.totals == [float(len(text)) for text in batch]
        assert not scores.messages


@pytest.mark.parametrize("evil", COSTLY)
def test_what_a_function_cannot_survive_costs_its_sample(hostile, evil):
    code, message = COSTLY[evil]
    scorer = hostile(code)
    scores = scored(scorer, "a", "evil", "abc")
    if message is not None:
        assert scores.totals == [1.0, None, 3.0]
        assert re.search(message, scores.messages[0]), scores.messages
    assert scored(scorer, "ab", "a").totals == [2.0, 1.0]
