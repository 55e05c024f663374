"""What the end of a process means for the run: its end, or another start after a delay.

The exit codes are the contract with every process of the project; nothing else is known about them here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from fairlead.config.infrastructure import LocalSection
from fairlead.local.process import Process, describe_exit

EXIT_USELESS = 2
"""Bad configuration, model or data: starting again changes nothing."""
EXIT_FENCED = 3
"""A newer trainer has taken over."""
EXIT_STALLED = 4
"""Nothing moved for so long that the process gave up."""
EXIT_GUARDED = 5
"""A signal of reward hacking ended PPO; its result and its last good policy are there."""

_LONGEST_BACKOFF_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0
# Of the main process in a row: what it waits for will not come by another start.
_MAX_STALLS = 1
# Ends of a process that never was ready: most likely it never will be.
_MAX_STILLBIRTHS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    code: int
    """Exit code for the shell."""
    message: str
    """Why, in one line."""


def judge(
    process: Process, code: int, *, local: LocalSection, finished: Callable[[], bool]
) -> Outcome | float:
    """The outcome of the run, or the delay in seconds before the next start.

    Args:
        process: the one that ended; its count of failures is brought up to date.
        code: its exit code, or minus the number of the signal that killed it.
        local: how often and how soon processes are started again.
        finished: whether the run's work is done, asked when the main process ends with 0.
    """
    spec = process.spec
    if spec.is_main and code == 0 and finished():
        return Outcome(0, f"{spec.name} has finished")
    words = (_mistake(process) if code >= 0 else "") or describe_exit(code)
    final = {
        EXIT_USELESS: f"{spec.name}: {words}",
        EXIT_FENCED: f"another trainer took over this run ({words})",
        EXIT_GUARDED: words,
    }
    if code in final:
        return Outcome(code, final[code])
    process.stalls = process.stalls + 1 if code == EXIT_STALLED else 0
    if process.stalls and (not spec.restarts or (spec.is_main and process.stalls > _MAX_STALLS)):
        return Outcome(code, f"{spec.name} gave up: {words}")
    if not spec.restarts and code == 0:
        return Outcome(1, f"{spec.name} was stopped before it had finished")
    if not spec.restarts:
        return Outcome(code if code > 0 else 128 - code, f"{spec.name}: {words}")
    return _again(process, code, local)


def said(process: Process, code: int | None = None) -> str:
    """The last words of a process, to be put behind what became of it.

    Who was killed by a signal had no time for any: the last line is about something else.
    """
    words = process.last_words() if code is None or code >= 0 else ""
    return f", saying: {words}" if words else ""


def _again(process: Process, code: int, local: LocalSection) -> Outcome | float:
    if process.ready_at is not None and time.monotonic() - process.ready_at >= _HEALTHY_SECONDS:
        process.failures = 0
    process.failures += 1
    limit = local.max_restarts
    if not process.was_ready:
        limit = min(limit, _MAX_STILLBIRTHS)
    if process.failures > limit:
        times = "once" if process.failures == 1 else f"{process.failures} times in a row"
        return Outcome(
            1,
            f"{process.name} died {times}, at last with {describe_exit(code)}{said(process, code)}; "
            f"its log: {process.log}",
        )
    return min(local.backoff_seconds * 2.0 ** (process.failures - 1), _LONGEST_BACKOFF_SECONDS)


def _mistake(process: Process) -> str:
    """The last words without the class of the error or the service's name before them."""
    return re.sub(r"^(?:[A-Z]\w*|[a-z_]+): (?=\S+: )", "", process.last_words())
