from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmpg.language.rewards.worker_process import WorkerDied, WorkerProcess, WorkerTimeout
from tests.support.planted import catches

FUNCTION = """
import ctypes, os, subprocess, sys, time

def pids(texts):
    child = subprocess.Popen(["sleep", "600"])
    return [os.getpid(), child.pid]

def hang(texts):
    with open(texts[0], "w") as file:
        file.write(" ".join(str(int(pid)) for pid in pids(texts)))
    time.sleep(600)

def scattered():
    # in sessions of their own or not, one without its parent, deaf to SIGTERM
    deaf = ["sh", "-c", "trap '' TERM; sleep 600; :"]
    started = [subprocess.Popen(deaf, start_new_session=own) for own in (False, True)]
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        daemon = os.fork()
        if daemon == 0:
            os.closerange(0, 64)
            time.sleep(600)
        os.write(writing, str(daemon).encode())
        os._exit(0)
    os.wait()
    return [os.getpid(), *(child.pid for child in started), int(os.read(reading, 20))]

def scatter(texts):
    with open(texts[0] + ".new", "w") as file:
        file.write(" ".join(map(str, scattered())))
    os.rename(texts[0] + ".new", texts[0])
    if texts[1] == "C":
        ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock held
    if texts[1] == "sleep":
        time.sleep(600)
    if texts[1] == "end":
        os._exit(5)
    return [0, 0]

def heard(texts):
    return [float(sys.stdin.read() == "")]

def modules(texts):
    return [float(name in sys.modules) for name in texts]

def ends(texts):
    sys.stderr.flush()
    os._exit(5)

def prints(texts):
    print("printed", texts[0], flush=True)
    subprocess.run(["printf", r"written \\033]0;title\\007\\n"])
    return [0.0]

def long(texts):
    return [float(len(text)) for text in texts]
"""


@pytest.fixture
def worker(tmp_path: Path):
    made: list[WorkerProcess] = []
    (tmp_path / "mine.py").write_text(FUNCTION)

    def make(name: str) -> WorkerProcess:
        made.append(WorkerProcess(f"{tmp_path / 'mine.py'}:{name}", start_timeout=60))
        assert made[-1].start()["parameters"] == ["texts"]
        return made[-1]

    yield make
    for one in made:
        one.stop()


def alive(pid: int) -> bool:
    """Whether it runs: neither gone nor a zombie that nobody has collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def all_gone(pids: list[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_stopping_ends_the_worker_and_what_it_started(worker):
    one = worker("pids")
    pids = [int(pid) for pid in one.call({"texts": ["", ""]}, 2, 20)["scores"]]
    assert all(alive(pid) for pid in pids)
    one.stop()
    assert all_gone(pids)
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], 0)


@catches("a worker asked twice to end leaves what it started")
@linux
@pytest.mark.parametrize("how", ["return", "sleep", "C", "end"])
def test_whatever_a_worker_started_ends_within_a_second(worker, tmp_path, how):
    one, told = worker("scatter"), tmp_path / "pids"
    with contextlib.suppress(WorkerTimeout, WorkerDied):
        one.call({"texts": [str(told), how]}, 2, 1.0)
    pids = [int(pid) for pid in told.read_text().split()]
    assert len(pids) == 4
    assert how != "return" or all(alive(pid) for pid in pids)
    for _ in range(20):  # while it is busy with the first
        one.kill()
        time.sleep(0.0005)
    one.stop()
    assert all_gone(pids, seconds=1)


@catches(
    "a worker outlives a trainer that was killed, or leaves children",
    "a supervisor that adopts no orphans",
    "a supervisor that nobody tells of the trainer's end",
)
@linux
@pytest.mark.parametrize("how", ["return", "sleep", "C", "end"])
def test_whatever_a_worker_started_dies_with_a_trainer_that_is_killed(tmp_path, how):
    (tmp_path / "mine.py").write_text(FUNCTION)
    code = (
        "import sys, time; from lmpg.language.rewards.worker_process import WorkerProcess\n"
        "worker = WorkerProcess(sys.argv[1] + ':scatter', 60)\n"
        "worker.start()\n"
        "try: worker.call({'texts': sys.argv[2:]}, 2, 600)\n"
        "finally: time.sleep(600)\n"
    )
    told = tmp_path / "pids"
    arguments = [str(tmp_path / "mine.py"), str(told), how]
    trainer = subprocess.Popen([sys.executable, "-c", code, *arguments])
    deadline = time.monotonic() + 60
    while not told.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert all_gone([int(pid) for pid in told.read_text().split()], seconds=1)


@linux
def test_a_worker_ends_with_a_program_that_forgets_to_stop_it(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION)
    code = (
        "import sys; from lmpg.language.rewards.worker_process import WorkerProcess\n"
        "worker = WorkerProcess(sys.argv[1] + ':pids', 60)\n"
        "worker.start()\n"
        "print(*worker.call({'texts': ['', '']}, 2, 60)['scores'])\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "mine.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert all_gone([int(float(pid)) for pid in done.stdout.split()])


def test_a_worker_that_hangs_is_killed_and_the_next_call_starts_another(worker, tmp_path):
    one = worker("hang")
    told = tmp_path / "pids"
    for _ in range(2):
        told.unlink(missing_ok=True)
        began = time.monotonic()
        with pytest.raises(WorkerTimeout):
            one.call({"texts": [str(told), "sleep"]}, 2, 2.0)
        assert time.monotonic() - began < 15
        assert all_gone([int(pid) for pid in told.read_text().split()])


def test_a_worker_that_ends_tells_its_exit_code(worker):
    with pytest.raises(WorkerDied, match="ended with exit code 5"):
        worker("ends").call({"texts": []}, 0, 20)


@linux
def test_a_worker_killed_between_calls_is_replaced_without_an_error(worker):
    one = worker("pids")
    first = int(one.call({"texts": ["", ""]}, 2, 20)["scores"][0])
    os.kill(first, signal.SIGKILL)
    assert all_gone([first])
    second = int(one.call({"texts": ["", ""]}, 2, 20)["scores"][0])
    assert second != first


def test_a_function_that_reads_stdin_finds_it_empty(worker):
    assert worker("heard").call({"texts": [""]}, 1, 20)["scores"] == [1.0]


def test_a_worker_loads_nothing_that_is_slow_to_import(worker):
    names = ["torch", "numpy", "transformers", "lmpg"]
    assert worker("modules").call({"texts": names}, 4, 20)["scores"] == [0.0] * 4


def test_texts_larger_than_a_pipes_buffer_and_odd_ones_arrive_whole(worker):
    texts = ["x" * 3_000_000, "line\nbreak\u2028\r", "\ud800 lone surrogate", "😀"]
    scores = worker("long").call({"texts": texts}, 4, 60)["scores"]
    assert scores == [float(len(text)) for text in texts]


@catches("what a reward prints steers the terminal")
def test_what_a_function_and_its_children_print_reaches_the_terminal_spelt_out(worker, capfd):
    process = worker("prints")
    process.call({"texts": ["\x1b[2J é →"]}, 1, 30)
    process.stop()
    said = capfd.readouterr().err
    assert "printed \\x1b[2J é →\n" in said
    assert "written \\x1b]0;title\\x07\n" in said
    assert "\x1b" not in said
