"""Forked processes: gRPC may abort or hang in a child of a process that had open connections.

The clients say so at once instead. A process that is forked before the first call, or after every client was
closed, is not affected.
"""

from __future__ import annotations

import os
from weakref import WeakSet

_MESSAGE = (
    "this process was forked while its parent had open gRPC connections, and gRPC does not work in it: start "
    'it with the method "spawn" or "forkserver" (multiprocessing.get_context), or close all clients of the '
    "parent before the fork"
)


class _Connections:
    """The objects of this process that hold connections."""

    def __init__(self) -> None:
        self.open: WeakSet[object] = WeakSet()
        self.forked = False

    def after_fork(self) -> None:
        """In the child: forget what belongs to the parent."""
        self.forked = self.forked or len(self.open) > 0
        self.open = WeakSet()


_PROCESS = _Connections()
os.register_at_fork(after_in_child=_PROCESS.after_fork)


def connected(holder: object) -> None:
    """Note that an object holds connections, until `closed`."""
    _PROCESS.open.add(holder)


def closed(holder: object) -> None:
    """Note that the connections of an object are closed."""
    _PROCESS.open.discard(holder)


def is_broken() -> bool:
    """Return whether gRPC cannot be used in this process."""
    return _PROCESS.forked


def check() -> None:
    """Check that gRPC can be used in this process.

    Raises:
        RuntimeError: if it was forked from a process with open connections.
    """
    if _PROCESS.forked:
        raise RuntimeError(_MESSAGE)
