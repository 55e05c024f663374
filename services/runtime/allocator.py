"""How the C library hands out memory in a process that computes on a CPU. Does nothing but with glibc.

A forward pass takes and frees tensors of megabytes by the hundred. By default glibc returns each to the
system and gets it again page by page, which cost a quarter of the time that scoring took
(benchmarks/scoring.py).
"""

from __future__ import annotations

import ctypes
import logging

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGE = 1 << 30


def keep_freed_memory() -> None:
    """From here on freed memory stays with the process, at its peak, and all threads share it.

    To be called before threads begin.
    """
    library = _glibc()
    if library is None:
        return
    wanted = {_ARENA_MAX: 1, _MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: _LARGE, _TOP_PAD: 64 << 20}
    if not all(library.mallopt(which, value) for which, value in wanted.items()):
        logger.info("the C library does not take all settings of its allocator")


def give_back() -> None:
    """Returns what is free to the system, once; for when much of it will not be needed again."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
