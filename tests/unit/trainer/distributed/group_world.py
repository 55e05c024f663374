"""What the ranks of the tests do; each function runs in processes of its own (tests/ranks.py)."""

from __future__ import annotations

import sys
import time

from fairlead.errors import NotFinite
from trainer.distributed.group import Group


def exchange(group: Group) -> dict[str, object]:
    """Send bytes in every way, and orders with and without a payload."""
    own = bytes([group.rank]) * (group.rank * 1000)
    found: dict[str, object] = {
        "broadcast": [group.broadcast(own, source=rank) == bytes([rank]) * rank * 1000 for rank in (0, 1)],
        "gather": [len(part) for part in group.gather(own)],
        "all_gather": [
            part == bytes([rank]) * rank * 1000 for rank, part in enumerate(group.all_gather(own))
        ],
    }
    orders = [("start", b""), ("learn", bytes(range(256)) * 5000), ("stop", b"")]
    for _ in range(20):
        for name, payload in orders:
            if group.is_first:
                group.send(name, payload)
                group.progress("a step")
                group.idle()
            elif group.next_order() != (name, payload):
                return {"order": name}
        group.barrier()
    return found


def work(group: Group, fault: str, rank: int) -> None:
    """Carry out orders without end; in the third, one rank has the fault."""
    for number in range(1, 1_000_000):
        if group.is_first:
            group.send("learn", b"rollouts")
        else:
            group.next_order()
        group.progress(f"micro-batch {number}")
        if number == 3:
            sys.stdout.write("working\n")
            sys.stdout.flush()
            if rank == group.rank and fault == "hang":
                time.sleep(1000)
            if rank == group.rank and fault == "error":
                raise NotFinite("ppo: the loss is nan")
            if rank == group.rank and fault == "bug":
                raise ZeroDivisionError("division by zero")
        group.barrier()
        group.idle()
        time.sleep(0.01)


def wait(group: Group) -> None:
    """Wait: rank 0 for something else than the other ranks, which wait for an order."""
    sys.stdout.write("working\n")
    sys.stdout.flush()
    if group.is_first:
        time.sleep(1000)
    group.next_order()
