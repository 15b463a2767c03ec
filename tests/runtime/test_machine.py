"""Memory that large tensors leave behind."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lmpg.runtime import machine
from lmpg.runtime.machine import keep_freed_memory
from tests.support.planted import catches

PROGRAM = """
import ctypes, os
from pathlib import Path
from lmpg.runtime.machine import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def held_after(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return held()

before = held()
print(held_after(2**27) - before < 2**26)
assert keep_freed_memory()
print(held_after(2**27) - before > 2**26)
"""


@catches("freed memory goes back to the kernel")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these switches")
def test_a_large_block_stays_with_the_process_when_it_is_freed():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


SIZE = """
import os, resource, sys
from pathlib import Path
from lmpg.runtime.machine import keep_freed_memory

if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))
page = os.sysconf("SC_PAGE_SIZE")
before = int(Path("/proc/self/statm").read_text().split()[0])
assert keep_freed_memory()
print((int(Path("/proc/self/statm").read_text().split()[0]) - before) * page)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these switches")
@pytest.mark.parametrize("addresses", ["free", "limited"])
def test_the_heap_takes_no_addresses_where_they_are_limited(addresses):
    strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    done = subprocess.run(
        [sys.executable, "-c", SIZE, addresses], capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) > 2**28) == (addresses == "free" and not strict)


GAPS = """
import os
import torch
from pathlib import Path
from lmpg.runtime.machine import give_back_freed_memory, keep_freed_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

assert keep_freed_memory()
blocks = [torch.ones(2**20) for _ in range(40)]
del blocks[::2]
before = held()
give_back_freed_memory()
print(before - held() > 60 * 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these switches")
def test_what_is_free_between_blocks_in_use_goes_back_when_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr
