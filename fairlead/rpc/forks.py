"""Forked processes: gRPC may abort or hang in a child of a process that used it.

The clients say so at once instead, also when the parent had closed all of them. A process that is forked
before the first call is not affected.

gRPC's own support for forks is switched off (`GRPC_ENABLE_FORK_SUPPORT=0`, unless the user has set it): it
starts gRPC's threads in every child, where they sometimes abort a process that does not use gRPC at all, such
as a worker of a data loader.
"""

from __future__ import annotations

import os

_MESSAGE = (
    "this process was forked after its parent had used gRPC, and gRPC does not work in it: start it with "
    'the method "spawn" or "forkserver" (multiprocessing.get_context), or fork it before the first call of '
    "a client"
)


class _Use:
    """Whether gRPC was used in this process, and whether in its parent before the fork."""

    def __init__(self) -> None:
        self.here = False
        self.in_parent = False

    def after_fork(self) -> None:
        """In the child: what was used here was used in the parent."""
        self.here, self.in_parent = False, self.in_parent or self.here


_USE = _Use()
os.register_at_fork(after_in_child=_USE.after_fork)


def connected() -> None:
    """Note that this process uses gRPC."""
    _USE.here = True


def is_broken() -> bool:
    """Return whether gRPC cannot be used in this process."""
    return _USE.in_parent


def check() -> None:
    """Check that gRPC can be used in this process.

    Raises:
        RuntimeError: if it was forked after its parent had used gRPC.
    """
    if _USE.in_parent:
        raise RuntimeError(_MESSAGE)
