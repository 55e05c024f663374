"""What can go wrong, and a seeded schedule of it. Pure: nothing is broken here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LONGEST_PAUSE_SECONDS = 6.0
LATENCY_SECONDS = 2.0
_LASTING_SECONDS = 5.0

PROCESS_FAULTS = ("kill", "pause", "hang")
"""SIGKILL; SIGSTOP, and SIGCONT after a while; SIGSTOP until its supervisor finds out and kills it."""
LINK_FAULTS = ("cut", "stall", "latency", "bandwidth")
"""Of the connection between two processes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    number: int
    """Place in the schedule."""
    after_updates: int
    """It strikes this many updates behind the one before; 0: while that one still hurts."""
    kind: str
    """One of PROCESS_FAULTS or LINK_FAULTS, `kill_all`, or `forget`: the queue loses everything."""
    target: str
    """Name of a process or a link; `queue` or `all`."""
    seconds: float
    """How long it lasts, for what lasts."""

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.number}: {self.kind} {self.target}{lasting}"


def schedule(
    seed: int, *, count: int, processes: Sequence[str], links: Sequence[str], updates_between: int = 3
) -> list[Fault]:
    """Faults in the order in which they strike; up to half of them kill one process after the other.

    Args:
        seed: the same gives the same schedule.
        count: how many.
        processes: names.
        links: names.
        updates_between: a fault strikes at most so many updates behind the one before.
    """
    draw = random.Random(seed)
    killed = draw.sample(processes, min(len(processes), count // 2))
    chosen: list[tuple[str, str]] = [("kill", process) for process in killed]
    weights: Mapping[str, float] = {
        "kill": 5,
        "pause": 4,
        "hang": 1,
        "cut": 2,
        "stall": 1,
        "latency": 2,
        "bandwidth": 1,
        "kill_all": 0.7,
        "forget": 1,
    }
    while len(chosen) < count:
        [kind] = draw.choices(list(weights), list(weights.values()))
        targets = {"kill_all": ["all"], "forget": ["queue"]} | {
            kind: list(processes) for kind in PROCESS_FAULTS
        }
        chosen.append((kind, draw.choice(targets.get(kind, list(links)))))
    draw.shuffle(chosen)
    return [
        Fault(number, draw.randint(0, updates_between), kind, target, _seconds(kind, draw))
        for number, (kind, target) in enumerate(chosen, 1)
    ]


def every(processes: Sequence[str], links: Sequence[str], *, updates_between: int = 5) -> list[Fault]:
    """A kill and a hang of every process, a cut and latency of every link, one after the other.

    Of replicas that are alike the first stands for all, and what it asks.
    """
    first = [name for name in (*processes, *links) if "-1" not in name.partition(" to ")[0]]
    first = [name for name in first if name != "peers to policy-1"]
    chosen = [(kind, name) for kind in ("hang", "kill") for name in first if name in processes]
    chosen += [(kind, name) for kind in ("cut", "latency") for name in first if name in links]
    return [
        Fault(number, updates_between, kind, name, _LASTING_SECONDS if kind in LINK_FAULTS else 0.0)
        for number, (kind, name) in enumerate(chosen, 1)
    ]


def _seconds(kind: str, draw: random.Random) -> float:
    return draw.uniform(0.5, LONGEST_PAUSE_SECONDS) if kind in ("pause", *LINK_FAULTS) else 0.0
