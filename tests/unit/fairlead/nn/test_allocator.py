"""Freed memory stays in the process until it is returned on request; tested in a child process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from fairlead.nn import allocator
if sys.argv[1] == "keep":
    allocator.keep_freed_memory()
if sys.argv[1] == "some":
    allocator.keep_some_freed_memory(64 << 20)
size = int(sys.argv[2]) << 20
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def allocate_and_free():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

allocate_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    allocate_and_free()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = resident()
allocator.give_back(above=128 << 20)
assert resident() > kept - 2, "little is free"
allocator.give_back()
print(faults, kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_until_given_back():
    found = {}
    for mode, size in (("keep", 40), ("some", 20), ("default", 40)):
        output = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode, str(size)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        found[mode] = tuple(map(int, output.split()))
    faults, given_back = found["keep"]
    assert faults < 1_000, "out of about 50,000 pages"
    assert given_back >= 35
    faults, given_back = found["some"]
    assert faults < 1_000, "out of about 25,000 pages"
    assert given_back >= 15
    assert found["default"][0] > 20_000, "by default every page is requested again"


BATCHES = """
import ctypes
from fairlead.nn import allocator
allocator.keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.realloc.restype, libc.realloc.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]
heap = allocator.HeapBound()

def batch(megabytes):
    blocks = [libc.malloc(megabytes << 20) for _ in range(40 // megabytes)]
    for block in blocks:
        ctypes.memset(block, 1, megabytes << 20)
    for block in blocks:
        libc.realloc(block, 1 << 10)  # what outlives the batch keeps its gaps apart
    heap.after_batch()

batch(1)
start = allocator.resident_bytes()
growth = []
for size in (1, 2, 4, 5, 8, 10, 20, 40):
    batch(size)
    growth.append(allocator.resident_bytes() - start >> 20)
print(max(growth))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_heap_keeps_little_more_than_the_largest_batch():
    output = subprocess.run(
        [sys.executable, "-c", BATCHES], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert int(output) <= 1.25 * 40 + 1
