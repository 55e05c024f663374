"""Waits for a run in the cluster: until every process is ready, or until the trainer has finished.

It reports what it waits for whenever that changes, and stops early after a failure that waiting cannot fix.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fairlead.errors import Stalled, Transient
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.processes import ProcessState, is_crash_looping, process_states

_MISTAKE = 2
"""Exit code of a process that would fail again after a restart (fairlead/errors.py)."""
_TRAINER = "trainer"


@dataclass(frozen=True, slots=True)
class WaitOutcome:
    """How a wait ended."""

    code: int
    """Exit code for the shell; that of the process if a process failed."""
    message: str
    """The reason, in one line."""


def restart_crashed(cluster: Cluster) -> list[str]:
    """Delete the pods that wait for their next restart, so that new ones start now, and return their names.

    The cause of their failures may have been fixed.
    """
    names = [pod["metadata"]["name"] for pod in cluster.list("v1", "Pod") if is_crash_looping(pod)]
    for name in names:
        cluster.delete("v1", "Pod", name)
    return names


def wait_until_ready(
    cluster: Cluster, *, timeout_seconds: float, poll_seconds: float, report: Callable[[str], None]
) -> WaitOutcome:
    """Wait until every process is ready, or one has failed for good.

    Args:
        cluster: the connection.
        timeout_seconds: how long to wait.
        poll_seconds: pause between two requests for the state.
        report: called with a line whenever what is waited for changes.

    Raises:
        Stalled: after `timeout_seconds`; names the processes that are not ready, and why.
    """
    return _wait(cluster, _readiness, timeout_seconds, poll_seconds, report)


def wait_until_done(
    cluster: Cluster,
    *,
    name: str = _TRAINER,
    timeout_seconds: float = math.inf,
    poll_seconds: float,
    report: Callable[[str], None],
) -> WaitOutcome:
    """Wait until a Job ends, by default the trainer, without a time limit; its failure is the outcome's.

    Raises:
        Stalled: after `timeout_seconds`.
    """
    of_process = None if name == _TRAINER else name
    return _wait(cluster, partial(_end_of, name), timeout_seconds, poll_seconds, report, of_process)


def _wait(
    cluster: Cluster,
    check: Callable[[Sequence[ProcessState]], WaitOutcome | dict[str, str]],
    timeout_seconds: float,
    poll_seconds: float,
    report: Callable[[str], None],
    of_process: str | None = None,
) -> WaitOutcome:
    """Poll until `check` returns an outcome; until then it returns what is waited for, and why.

    A failure of any process ends the wait, or only one of `of_process`.
    """
    deadline = time.monotonic() + timeout_seconds
    reported: dict[str, str] = {}
    while True:
        try:
            states = [one for one in process_states(cluster) if of_process in (None, one.name)]
            found = _failure(states) or check(states)
        except Transient as error:
            found = {"the cluster": str(error)}
        if isinstance(found, WaitOutcome):
            return found
        if time.monotonic() > deadline:
            raise Stalled(f"waited {timeout_seconds:.0f} s for {'; '.join(grouped(found))}")
        for line in grouped({name: text for name, text in found.items() if text != reported.get(name)}):
            report(f"waiting for {line}")
        reported |= found
        time.sleep(poll_seconds)


def _readiness(states: Sequence[ProcessState]) -> WaitOutcome | dict[str, str]:
    waiting = [state for state in states if not state.is_settled]
    if states and not waiting:
        return WaitOutcome(0, f"ready: {', '.join(_counted(state) for state in states)}")
    return {f"{state.name} {state.ready}/{state.wanted}": state.doing for state in waiting} or {
        "the first object": ""
    }


def _end_of(name: str, states: Sequence[ProcessState]) -> WaitOutcome | dict[str, str]:
    job = next((state for state in states if state.name == name), None)
    if job is None:
        return WaitOutcome(1, f"the {name} no longer exists in this namespace")
    if job.done:
        return WaitOutcome(0, f"the {name} has finished")
    return {f"the end of the {name}": job.doing}


def _failure(states: Sequence[ProcessState]) -> WaitOutcome | None:
    """Return the outcome for a Job that failed, or a process whose mistake a restart does not fix."""
    for state in states:
        if state.failed:
            end = state.end
            reason = f"exit code {end.code}: {end.message}" if end is not None else state.failed
            return WaitOutcome(end.code if end is not None else 1, f"{state.name}: {reason}")
        if state.end is not None and state.end.code == _MISTAKE:
            return WaitOutcome(_MISTAKE, f"{state.name}: {state.end.message}")
    return None


def grouped(reasons: Mapping[str, str]) -> list[str]:
    """Return a line for each reason, with all that wait for it: `policy 0/1, reward 0/1 (starting)`."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(waiting)}{f' ({reason})' if reason else ''}" for reason, waiting in names.items()]


def _counted(state: ProcessState) -> str:
    return f"{state.name} {'done' if state.done else state.ready}"
