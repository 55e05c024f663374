"""Decide, when a process has ended, whether its run ends too or the process is restarted after a delay.

The supervisor asks this after every exit. The exit codes are the contract with every process of the project;
this module knows nothing else about them.

Failures are counted as long as there is no progress between them. Progress of the trainer is an update in a
checkpoint; of a process that commits nothing, a minute of health.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from fairlead.backoff import Backoff
from fairlead.config.infrastructure import LocalSection
from fairlead.local.process import ChildProcess, describe_exit

EXIT_MISTAKE = 2
"""The configuration, a model or data is wrong: a restart would fail in the same way."""
EXIT_FENCED = 3
"""A newer trainer has taken over."""
EXIT_STALLED = 4
"""The process waited too long for progress and gave up."""
EXIT_GUARDED = 5
"""A guard against reward hacking stopped PPO; the result and the last good policy are saved."""

_LONGEST_BACKOFF_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0
# Of the main process, without progress: a second restart would not bring what it waits for.
_MAX_STALLS = 1
# Failures of a process that was never ready: it most likely never will be.
_MAX_FAILURES_BEFORE_READY = 3


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended."""

    code: int
    """Exit code for the shell."""
    message: str
    """The reason, in one line."""


def after_exit(
    process: ChildProcess, code: int, *, local: LocalSection, finished: Callable[[], bool]
) -> RunOutcome | float:
    """Return the outcome of the run, or the delay in seconds before the process is restarted.

    Args:
        process: the process that ended; its counts of failures and stalls are updated.
        code: its exit code, or minus the number of the signal that killed it.
        local: limits and delays of restarts.
        finished: whether the run's work is done; called when the main process ends with code 0.
    """
    spec = process.spec
    if spec.is_main and code == 0 and finished():
        return RunOutcome(0, f"{spec.name} has finished")
    reason = (_stated_reason(process) if code >= 0 else "") or describe_exit(code)
    final = {
        EXIT_MISTAKE: f"{spec.name}: {reason}",
        EXIT_FENCED: f"another trainer took over this run ({reason})",
        EXIT_GUARDED: reason,
    }
    if code in final:
        return RunOutcome(code, final[code])
    if _has_progressed(process):
        process.failures = process.stalls = 0
    process.stalls += code == EXIT_STALLED
    if code == EXIT_STALLED and (not spec.restarts or (spec.is_main and process.stalls > _MAX_STALLS)):
        return RunOutcome(code, f"{spec.name} gave up: {reason}")
    if not spec.restarts and code == 0:
        return RunOutcome(1, f"{spec.name} was stopped before it finished")
    if not spec.restarts:
        return RunOutcome(code if code > 0 else 128 - code, f"{spec.name}: {reason}")
    return _restart_delay(process, code, local)


def last_line_note(process: ChildProcess, code: int | None = None) -> str:
    """Return `, last line: …` with the last line of a process's log, to append to a message about its end.

    Empty for a process that a signal killed: its last line has nothing to do with its end.
    """
    line = process.last_log_line() if code is None or code >= 0 else ""
    return f", last line: {line}" if line else ""


def _has_progressed(process: ChildProcess) -> bool:
    """Return whether the process made progress since its last failure."""
    if process.spec.committed is None:
        return process.ready_at is not None and time.monotonic() - process.ready_at >= _HEALTHY_SECONDS
    before, process.committed = process.committed, process.spec.committed()
    return process.committed > before


def _restart_delay(process: ChildProcess, code: int, local: LocalSection) -> RunOutcome | float:
    process.failures += 1
    limit = local.max_restarts
    if not process.was_ready:
        limit = min(limit, _MAX_FAILURES_BEFORE_READY)
    if process.failures > limit:
        times = "once" if process.failures == 1 else f"{process.failures} times without progress"
        return RunOutcome(
            1,
            f"{process.name} died {times} ({describe_exit(code)}{last_line_note(process, code)}); "
            f"its log: {process.log}",
        )
    # No jitter: the processes of one machine share nothing that restarts together could overload.
    backoff = Backoff(local.backoff_seconds, _LONGEST_BACKOFF_SECONDS, jitter=0.0)
    return backoff.seconds(process.failures)


def _stated_reason(process: ChildProcess) -> str:
    """Return the last line of the log without the class of the error or the service's name before it."""
    return re.sub(r"^(?:[A-Z]\w*|[a-z_]+): (?=\S+: )", "", process.last_log_line())
