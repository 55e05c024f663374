"""The small files of a run's folder through which its processes and observers learn about each other.

The supervisor holds `supervisor.lock` and writes `processes.json` (pids), `supervisor.json` (the state of
every process, and how the run ended) and `targets.json` (where metrics are). The stage that runs writes
`progress.json`. The supervisor, the live view and `fairlead status` read them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from fairlead.config import RunFolder
from fairlead.config.saving import replace_text
from fairlead.errors import ProcessFailed
from fairlead.local.probes import GrpcHealth, HttpHealth
from fairlead.local.process import ChildProcess, State
from fairlead.local.restart_policy import RunOutcome

MARK = "FAIRLEAD_SUPERVISED_RUN"
"""Environment variable of every child process: the absolute path of the run's folder.

It distinguishes a process of the run from a foreign one that was given the same pid later.
"""

_END_SECONDS = 10.0


class RunLock:
    """The lock that allows one supervisor per run folder; its file holds the supervisor's pid.

    The lock is advisory, and the kernel releases it when the process that holds it ends.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.lock
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock without waiting.

        Raises:
            ProcessFailed: if another process holds it; names its pid.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise ProcessFailed(
                f"{self._path.parent}: another fairlead process (pid {holder}) is working on this run"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock. The file stays: removing it would let two processes lock two different files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def write_pids(path: Path, pids: Mapping[str, int]) -> None:
    """Replace `processes.json` in one step; the pids are by process name."""
    replace_text(path, json.dumps(pids, indent=1) + "\n")


def read_pids(path: Path) -> dict[str, int]:
    """Return the pids by process name as last written; empty if the file is missing or invalid."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {str(name): pid for name, pid in entries.items() if isinstance(pid, int) and pid > 0}


def running_pids(path: Path, *, mark: str) -> dict[str, int]:
    """Return the pids of `processes.json` that are alive and belong to the run, by process name.

    Args:
        path: the file.
        mark: value of `MARK` in the run's processes.
    """
    return {name: pid for name, pid in read_pids(path).items() if _belongs_to_run(pid, mark=mark)}


def end_stale(path: Path, *, mark: str) -> list[str]:
    """Kill the processes that an earlier supervisor left running, and return their names.

    Only the holder of the run's lock may call this. Nothing is drained: no task is lost when a process dies.
    """
    stale = running_pids(path, mark=mark)
    for pid in stale.values():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    ending = []
    for pid in stale.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            ending.append(psutil.Process(pid))
    psutil.wait_procs(ending, timeout=_END_SECONDS)
    return sorted(stale)


def _belongs_to_run(pid: int, *, mark: str) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except psutil.Error:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One process in `supervisor.json`."""

    name: str
    """Unique in the run."""
    state: str
    """A value of `State`; `running` for a process without a readiness probe."""
    pid: int | None
    """Process id while it is alive."""
    restarts: int
    """Starts after the first."""
    started: float
    """Unix time of the last start in seconds; 0 before the first."""
    grpc: str = ""
    """`host:port` of its gRPC health service, if it has one."""
    http: str = ""
    """`host:port` of `/readyz`, if that is its readiness probe."""
    metrics: str = ""
    """`host:port` of `/metrics` and `/waiting`, if it has them."""
    log: str = ""
    """Path of its log."""
    redis: str = ""
    """`host:port` if it is the run's Valkey."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorRecord:
    """The content of `supervisor.json`.

    A record without an outcome whose supervisor is not alive means that the supervisor crashed.
    """

    stage: str
    """sft, reward_model, preference or ppo."""
    alive: bool
    """Whether the supervisor that wrote the file is still alive."""
    started: float
    """Unix time at which the supervisor started."""
    written: float
    """Unix time at which the file was written."""
    processes: tuple[ProcessRecord, ...]
    """In the order of the plan."""
    outcome: RunOutcome | None
    """How the run ended, once that is decided."""
    metrics: str = ""
    """`host:port` of the supervisor's own metrics; empty if it serves none."""


def write_record(
    path: Path,
    processes: Sequence[ChildProcess],
    *,
    stage: str,
    started: float,
    outcome: RunOutcome | None,
    metrics: str = "",
) -> None:
    """Replace `supervisor.json` in one step; `metrics` is the address of the supervisor's own."""
    # Processes record times on the monotonic clock.
    offset = time.time() - time.monotonic()
    entry = {
        "stage": stage,
        "pid": os.getpid(),
        "pid_created": psutil.Process().create_time(),
        "started": started,
        "written": time.time(),
        "metrics": metrics,
        "processes": [_entry(process, offset) for process in processes],
        "outcome": {"code": outcome.code, "message": outcome.message} if outcome else None,
    }
    replace_text(path, json.dumps(entry, indent=1) + "\n")


def write_targets(path: Path, addresses: Mapping[str, str], *, run: str, scheme: str = "http") -> None:
    """Replace `targets.json`, which Prometheus reads as `file_sd_configs`, in one step.

    Args:
        path: the file.
        addresses: `host:port` of the metrics of each process; processes without are left out.
        run: name of the run, a label of every target.
        scheme: `http` or `https`.
    """
    entries = [
        {
            "targets": [address],
            "labels": {
                "run": run,
                "process": process,
                "service": re.sub(r"-\d+$", "", process),
                **({"__scheme__": scheme} if scheme != "http" else {}),
            },
        }
        for process, address in addresses.items()
        if address
    ]
    # Prometheus runs as a user of its own.
    replace_text(path, json.dumps(entries, indent=1) + "\n", mode=0o644)


def read_record(path: Path) -> SupervisorRecord | None:
    """Return the record as last written; None if the file is missing or invalid."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        outcome = entry["outcome"]
        return SupervisorRecord(
            stage=str(entry["stage"]),
            alive=_is_alive(int(entry["pid"]), float(entry["pid_created"])),
            started=float(entry["started"]),
            written=float(entry["written"]),
            metrics=str(entry.get("metrics", "")),
            processes=tuple(ProcessRecord(**process) for process in entry["processes"]),
            outcome=RunOutcome(int(outcome["code"]), str(outcome["message"])) if outcome else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(process: ChildProcess, offset: float) -> dict[str, Any]:
    probe = process.spec.probe
    runs_without_probe = process.state is State.READY and probe is None
    return {
        "name": process.name,
        "state": "running" if runs_without_probe else process.state.value,
        "pid": process.pid,
        "restarts": process.restarts,
        "started": process.started_at + offset if process.starts else 0.0,
        "grpc": probe.address if isinstance(probe, GrpcHealth) else "",
        "http": f"{probe.host}:{probe.port}" if isinstance(probe, HttpHealth) else "",
        "metrics": process.spec.metrics,
        "log": str(process.log),
        "redis": process.spec.redis,
    }


def _is_alive(pid: int, created: float) -> bool:
    """Return whether the process is alive and is not another one that was given its pid later."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - created) < 1.0
    except psutil.Error:
        return False


@dataclass(frozen=True, slots=True)
class StageProgress:
    """The content of `progress.json`: what a stage is doing."""

    stage: str
    """sft, reward_model, preference, ppo or evaluation."""
    phase: str
    """One of `fairlead.metrics.PHASES`."""
    step: int
    """Steps or updates done."""
    total: int
    """Steps or updates in all."""
    figures: dict[str, float] = field(default_factory=dict)
    """Figures of the last step, by name."""
    since: float = 0.0
    """Unix time in seconds at which the phase began."""
    waiting_for: str | None = None
    """What the stage waits for, if it waits."""
    doing: str | None = None
    """What the stage does in a phase without steps."""
    eta_seconds: float | None = None
    """Estimated time left, if known."""


def read_progress(path: Path) -> StageProgress | None:
    """Return the progress as last written; None if the file is missing or invalid."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return StageProgress(
            stage=str(entry["stage"]),
            phase=str(entry["phase"]),
            step=int(entry["step"]),
            total=int(entry["total"]),
            # A figure that is not finite is null in JSON; a run whose loss is NaN still has progress.
            figures={
                str(name): math.nan if value is None else float(value)
                for name, value in (entry.get("figures") or {}).items()
            },
            since=float(entry.get("since") or 0.0),
            waiting_for=entry.get("waiting_for"),
            doing=entry.get("doing"),
            eta_seconds=entry.get("eta_seconds"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
