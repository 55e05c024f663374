"""`supervisor.json`: what a supervisor knows, for those who look on: its processes, and how it ended.

Written at every change, read by `fairlead status`. A file without an outcome whose supervisor is gone tells
of a crash.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fairlead.config.saving import replace_text
from fairlead.local.probes import GrpcHealth, Readyz
from fairlead.local.process import Process, State
from fairlead.local.verdict import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One process as its supervisor saw it last."""

    name: str
    """Unique in the run."""
    state: str
    """One of `State`; `running` for what is never asked whether it is ready."""
    pid: int | None
    """Process id while it lives."""
    restarts: int
    """Starts after the first."""
    started: float
    """Unix time of the last start, in seconds; 0 before it."""
    grpc: str = ""
    """`host:port` of its gRPC health, if it has one."""
    http: str = ""
    """`host:port` of its `/readyz`, if that is what it is asked by."""
    metrics: str = ""
    """`host:port` where it says what it waits for, if it does."""
    log: str = ""
    """Path of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorRecord:
    """A supervisor as it wrote itself down."""

    stage: str
    """sft, reward_model or ppo."""
    alive: bool
    """Whether that very process still lives."""
    started: float
    """Unix time of its start."""
    written: float
    """Unix time of the file."""
    processes: tuple[ProcessRecord, ...]
    """In the order of the plan."""
    outcome: Outcome | None
    """How it ended, once that is decided."""


def write(
    path: Path, processes: Sequence[Process], *, stage: str, started: float, outcome: Outcome | None
) -> None:
    """Replaces the file in one step."""
    # Processes keep monotonic times.
    offset = time.time() - time.monotonic()
    entry = {
        "stage": stage,
        "pid": os.getpid(),
        "pid_created": psutil.Process().create_time(),
        "started": started,
        "written": time.time(),
        "processes": [_entry(process, offset) for process in processes],
        "outcome": {"code": outcome.code, "message": outcome.message} if outcome else None,
    }
    replace_text(path, json.dumps(entry, indent=1) + "\n")


def read(path: Path) -> SupervisorRecord | None:
    """The record as last written; None if there is none."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        outcome = entry["outcome"]
        return SupervisorRecord(
            stage=str(entry["stage"]),
            alive=_is_alive(int(entry["pid"]), float(entry["pid_created"])),
            started=float(entry["started"]),
            written=float(entry["written"]),
            processes=tuple(ProcessRecord(**process) for process in entry["processes"]),
            outcome=Outcome(int(outcome["code"]), str(outcome["message"])) if outcome else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(process: Process, offset: float) -> dict[str, Any]:
    probe = process.spec.probe
    never_asked = process.state is State.READY and probe is None
    return {
        "name": process.name,
        "state": "running" if never_asked else process.state.value,
        "pid": process.pid,
        "restarts": process.restarts,
        "started": process.started_at + offset if process.starts else 0.0,
        "grpc": probe.address if isinstance(probe, GrpcHealth) else "",
        "http": f"{probe.host}:{probe.port}" if isinstance(probe, Readyz) else "",
        "metrics": process.spec.metrics,
        "log": str(process.log),
    }


def _is_alive(pid: int, created: float) -> bool:
    """Whether the process is there, and not another that got its number later."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - created) < 1.0
    except psutil.Error:
        return False
