"""Bounds on the memory that libraries keep in processes that compute on a CPU: the C library and oneDNN.

The settings of the C library have no effect without glibc.

A forward pass allocates and frees hundreds of tensors of several megabytes. By default glibc returns each one
to the system and gets it back page by page, which took a quarter of the scoring time (benchmarks/scoring.py).
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import os
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGE = 1 << 30
_LARGEST_IN_HEAP = 32 << 20
"""Larger blocks are mapped apart from a bounded heap; the largest limit that glibc reaches by itself."""
_KERNELS = 64
"""Kernels that oneDNN keeps: those of about five batches of different shape."""


def keep_freed_memory() -> None:
    """Keep freed memory in the process, shared by all its threads, instead of returning it to the system.

    Memory use then stays at its peak. Call this before the first thread starts: each thread that exists gets
    a heap of its own, and freed memory of one is no use to another.
    """
    library = _glibc()
    if library is None:
        return
    wanted = {_ARENA_MAX: 1, _MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: _LARGE, _TOP_PAD: 64 << 20}
    if not all(library.mallopt(which, value) for which, value in wanted.items()):
        logger.info("the C library rejected some of the allocator settings")


def keep_some_freed_memory(at_most: int) -> None:
    """Keep up to `at_most` bytes of freed memory at the end of the heap.

    For a process with large and with small models: memory of small tensors is not requested again page by
    page, which took a third of the time of training a small model, and that of large ones is returned.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
        library.mallopt(_TRIM_THRESHOLD, at_most)


def bound_kernels() -> None:
    """Limit the kernels that oneDNN keeps, unless its environment variable is set.

    It compiles some for every shape of a bfloat16 product. By default it keeps 1,024 of them with their
    working memory: more than 1 GiB after batches of a hundred shapes. Call this before the first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))


def give_back(*, above: int = 0) -> None:
    """Return free memory to the system once, for example after a model was unloaded or a backward pass.

    Args:
        above: do nothing while the heap has at most this many free bytes.
    """
    library = _glibc()
    if library is not None and (not above or _free_bytes(library) > above):
        library.malloc_trim(0)


class _HeapFigures(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _free_bytes(library: ctypes.CDLL) -> int:
    """Return the bytes of the heap that are free; with an old glibc, which does not say, a large number."""
    if not hasattr(library, "mallinfo2"):
        return sys.maxsize
    library.mallinfo2.restype = _HeapFigures
    return int(library.mallinfo2().fordblks)


class HeapBound:
    """Bounds the memory that the heap keeps between batches, in a process that keeps freed memory.

    A batch fits only in part into what batches of other sizes left, so the heap would grow to a multiple of
    what the largest batch needs.
    """

    _LARGEST_BATCHES = 1.25
    """Growth, in batches of the largest size seen, after which free memory is returned. More is faster:
    memory that was returned is requested again page by page."""

    def __init__(self) -> None:
        self._after_return = 0
        """Resident memory after free memory was last returned, in bytes."""
        self._largest = 0
        """Most that one batch added to it."""
        self._is_first = False

    def after_batch(self) -> None:
        """Return free memory to the system if the process has grown by more than a batch needs."""
        growth = resident_bytes() - self._after_return
        if self._is_first:
            self._largest = max(self._largest, growth)
            self._is_first = False
        if growth > self._LARGEST_BATCHES * self._largest:
            give_back()
            self._after_return = resident_bytes()
            self._is_first = True


def resident_bytes() -> int:
    """Return the memory of this process that is in main memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def long_lived(num_bytes: int) -> mmap.mmap:
    """Return zeroed memory apart from the heap, which the system gets back when the last view of it is gone.

    For what outlives the work that it was allocated in: in the heap it would lie between the tensors of that
    work, and their freed memory could not be used as a whole again.
    """
    return mmap.mmap(-1, num_bytes)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
