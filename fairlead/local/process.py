"""One supervised child process: its command, log, state and exit.

The supervisor decides when a child starts and what its end means; the operations are here. Each child leads
its own process group, so that Ctrl-C on the terminal reaches only the supervisor. It dies with the supervisor
(launch.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.local import launch
from fairlead.local.probes import Probe

if TYPE_CHECKING:
    from fairlead.local.standby import Standby, StandbyChild

_LAST_BYTES = 16_384


class State(enum.StrEnum):
    """The state of a child process."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "restarting"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to run as one process of a run, and how to supervise it."""

    name: str
    """Unique in the run: `policy-0`, `trainer`."""
    command: tuple[str, ...]
    """Program and arguments."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables in addition to those of every process of the run; secrets are passed here."""
    probe: Probe | None = None
    """Readiness probe; None means ready as soon as it runs."""
    alive: Probe | None = None
    """Liveness probe; None means that liveness is not checked."""
    metrics: str = ""
    """`host:port` of `/metrics` and `/waiting`; empty if it has none."""
    redis: str = ""
    """`host:port` if it is the run's Valkey."""
    ready_after: tuple[str, ...] = ()
    """Processes that must be ready first: its readiness timeout starts when all of them are."""
    drain_rank: int = 0
    """Processes of a lower rank are stopped first, and must have ended before the next rank is stopped."""
    is_main: bool = False
    """Whether the run ends when this process succeeds."""
    restarts: bool = True
    """Whether it is restarted when it dies."""
    committed: Callable[[], int] | None = None
    """Returns how far its work has come on disk; None if that is not known."""
    loads_models: bool = False
    """Whether it imports the model libraries, so that a process on standby starts it sooner."""


class ChildProcess:
    """A process of the run: its current child, and the history of its starts and failures."""

    def __init__(
        self,
        spec: ProcessSpec,
        *,
        log: Path,
        environment: Mapping[str, str],
        standby: Standby | None = None,
    ) -> None:
        """
        Args:
            spec: what to run.
            log: file to which its output is appended.
            environment: its variables, without those of `spec`.
            standby: processes that may run it if it `loads_models`.
        """
        self.spec = spec
        self.log = log
        self.state = State.WAITING
        self.starts = 0
        """Number of starts."""
        self.failures = 0
        """Failures without progress in between; see `restart_policy`."""
        self.stalls = 0
        """Those of them in which the process had waited too long for something."""
        self.committed = 0
        """What `spec.committed` returned at the first start or at the last failure."""
        self.was_ready = False
        """Whether any of its children was ever ready."""
        self.ready_at: float | None = None
        """Monotonic time at which the current child became ready."""
        self.started_at = 0.0
        """Monotonic time of the last start."""
        self.killed_for = ""
        """Why the supervisor killed the current child: `hung` or `not_ready`; empty if it did not."""
        self._environment = {**environment, **spec.environment}
        self._standby = standby if spec.loads_models else None
        self._child: asyncio.subprocess.Process | StandbyChild | None = None
        self._log_start = 0

    @property
    def name(self) -> str:
        """The name of the process in the run."""
        return self.spec.name

    @property
    def restarts(self) -> int:
        """Starts after the first."""
        return max(0, self.starts - 1)

    @property
    def pid(self) -> int | None:
        """The pid while the child is alive; None otherwise."""
        child = self._child
        return child.pid if child is not None and child.returncode is None else None

    async def start(self) -> None:
        """Start the child; its output is appended to its log."""
        if not self.starts and self.spec.committed is not None:
            self.committed = self.spec.committed()
        self.starts += 1
        self.started_at = time.monotonic()
        self.ready_at = None
        self.killed_for = ""
        self.state = State.STARTING
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            output.write(_header(self.spec, self.starts).encode())
            output.flush()
            self._log_start = output.seek(0, os.SEEK_END)
            if self._standby is not None:
                self._child = self._standby.take(self.spec.command, self._environment, log=self.log)
                if self._child is not None:
                    return
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", launch.__file__, str(os.getpid())),
                *self.spec.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Wait for the child to end; return its exit code, or minus the number of a signal that killed it."""
        assert self._child is not None
        code = await self._child.wait()
        # Processes that it started and left running.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        return code

    def mark_ready(self) -> None:
        """Record that the child is ready."""
        self.state = State.READY
        self.ready_at = time.monotonic()
        self.was_ready = True

    def terminate(self) -> None:
        """Send SIGTERM: the child drains and ends."""
        if self.pid is not None:
            self.state = State.STOPPING
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the child and everything in its process group."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def last_log_line(self) -> str:
        """Return the last line that the current or latest child logged; of a JSON line, its message."""
        try:
            with self.log.open("rb") as written:
                end = written.seek(0, os.SEEK_END)
                written.seek(max(self._log_start, end - _LAST_BYTES))
                lines = written.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((_plain(line) for line in reversed(lines) if line.strip()), "")


def describe_exit(code: int) -> str:
    """Return how a process ended, in words, from its exit code or minus the number of a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _header(spec: ProcessSpec, start: int) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"--- {now} start {start} of {spec.name}: {' '.join(spec.command)}\n"


def _plain(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(entry, dict) or "message" not in entry:
        return line.strip()
    exception = str(entry.get("exception") or "").strip().rpartition("\n")[2]
    return f"{entry['message']}: {exception}" if exception else str(entry["message"])
