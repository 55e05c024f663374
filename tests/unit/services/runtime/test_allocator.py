"""What is freed stays with the process, and goes back when asked: seen in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from services.runtime import allocator
if sys.argv[1] == "keep":
    allocator.keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def turn():
    place = libc.malloc(40 << 20)
    ctypes.memset(place, 1, 40 << 20)
    libc.free(place)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    turn()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = resident()
allocator.give_back()
print(faults, kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_until_it_is_given_back():
    found = {}
    for mode in ("keep", "default"):
        said = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        found[mode] = tuple(map(int, said.split()))
    faults, given_back = found["keep"]
    assert faults < 1_000, "of some 50,000 pages"
    assert given_back >= 35
    assert found["default"][0] > 20_000, "without it every page is asked for again"
