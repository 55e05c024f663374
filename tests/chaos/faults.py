"""The kinds of faults, and a seeded schedule of them. Pure: nothing is injected here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LONGEST_PAUSE_SECONDS = 6.0
LATENCY_SECONDS = 2.0
_LASTING_SECONDS = 5.0

PROCESS_FAULTS = ("kill", "pause", "hang")
"""SIGKILL; SIGSTOP, and SIGCONT after a while; SIGSTOP until the supervisor notices and kills it."""
LINK_FAULTS = ("cut", "stall", "latency", "bandwidth")
"""Faults of the connection between two processes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    number: int
    """Position in the schedule, from 1."""
    after_updates: int
    """Updates after the fault before it; 0 if it is injected while that one is still in effect."""
    kind: str
    """One of PROCESS_FAULTS or LINK_FAULTS, `kill_all`, or `forget`: Redis loses everything."""
    target: str
    """Name of a process or a link; `queue` or `all`."""
    seconds: float
    """Duration of a fault that has one, else 0."""

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.number}: {self.kind} {self.target}{lasting}"


def schedule(
    seed: int, *, count: int, processes: Sequence[str], links: Sequence[str], updates_between: int = 3
) -> list[Fault]:
    """Return faults in the order in which they are injected; up to half kill one process after the other.

    Args:
        seed: the same seed gives the same schedule.
        count: number of faults.
        processes: names of processes.
        links: names of links.
        updates_between: most updates between a fault and the one before it.
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


def every_fault(processes: Sequence[str], links: Sequence[str], *, updates_between: int = 5) -> list[Fault]:
    """Return a kill and a hang of every process, and a cut and latency of every link, one after the other.

    Of identical replicas, only the first one and its links are included.
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
