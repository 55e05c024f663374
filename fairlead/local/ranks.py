"""What the processes that hold one model together have in common, in the trainer and in model services."""

from __future__ import annotations

import sys
from collections.abc import Mapping

SUSPENDED_SECONDS = 2.0
"""A check of other processes that is this late means that its own process was suspended, which says nothing
about them."""


def rank_environment(base: Mapping[str, str], *, ranks: int, is_one_machine: bool) -> dict[str, str]:
    """Return the variables of each rank that do not depend on its number.

    Args:
        base: the environment of the process that starts them.
        ranks: number of ranks on this machine, which share `OMP_NUM_THREADS`.
        is_one_machine: whether there are no ranks on other machines.
    """
    # The end of a peer is reported by other means, in one line.
    found = {"TORCH_CPP_LOG_LEVEL": base.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
    if is_one_machine and sys.platform == "linux":
        # Collectives have no access control, so they must not be reachable from other machines.
        found["GLOO_SOCKET_IFNAME"] = base.get("GLOO_SOCKET_IFNAME", "lo")
    threads = base.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        found["OMP_NUM_THREADS"] = str(share_of_threads(int(threads), ranks=ranks))
    return found


def share_of_threads(threads: int, *, ranks: int) -> int:
    """Return the threads of one rank: at least one, or 0 if the number is not set."""
    return max(1, threads // ranks) if threads else 0
