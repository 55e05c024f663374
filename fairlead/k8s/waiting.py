"""Waits for a run in the cluster: until every process is ready, or until the trainer is done.

Says what it waits for whenever that changes, and ends at once for what no waiting mends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairlead.errors import DeadlineExceeded, Stalled, Unavailable
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.processes import ProcessState, crashed, survey

_MISTAKE = 2
"""Exit code of a process that a restart does not help (fairlead/errors.py)."""
_TRAINER = "trainer"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a wait ended."""

    code: int
    """Exit code for the shell; that of the process if one ended."""
    message: str
    """Why, in one line."""


def restart_crashed(cluster: Cluster) -> list[str]:
    """Starts those pods again that wait for a next try: what they died of may have been mended.

    Returns:
        Their names.
    """
    names = [pod["metadata"]["name"] for pod in cluster.list("v1", "Pod") if crashed(pod)]
    for name in names:
        cluster.delete("v1", "Pod", name)
    return names


def wait_until_ready(
    cluster: Cluster, *, timeout_seconds: float, poll_seconds: float, say: Callable[[str], None]
) -> Outcome:
    """Waits until every process is ready.

    Raises:
        Stalled: when time is up; names what is not ready, and why.
    """
    return _wait(cluster, _readiness, timeout_seconds, poll_seconds, say)


def wait_until_done(cluster: Cluster, *, poll_seconds: float, say: Callable[[str], None]) -> Outcome:
    """Waits until the trainer ends, however long that takes; its failure is the outcome's."""
    return _wait(cluster, _end_of_trainer, math.inf, poll_seconds, say)


def _wait(
    cluster: Cluster,
    look: Callable[[Sequence[ProcessState]], Outcome | dict[str, str]],
    timeout_seconds: float,
    poll_seconds: float,
    say: Callable[[str], None],
) -> Outcome:
    deadline, said = time.monotonic() + timeout_seconds, dict[str, str]()
    while True:
        try:
            states = survey(cluster)
            found = _failure(cluster, states) or look(states)
        except (Unavailable, DeadlineExceeded) as error:
            found = {"cluster": str(error)}
        if isinstance(found, Outcome):
            return found
        if time.monotonic() > deadline:
            raise Stalled(f"waited {timeout_seconds:.0f} s for {', '.join(found.values())}")
        for name in [name for name in found if found[name] != said.get(name)]:
            say(f"waits for {found[name]}")
        said |= found
        time.sleep(poll_seconds)


def _readiness(states: Sequence[ProcessState]) -> Outcome | dict[str, str]:
    waiting = [state for state in states if not state.is_settled]
    if states and not waiting:
        return Outcome(0, f"ready: {', '.join(_counted(state) for state in states)}")
    return {state.name: _explained(state) for state in waiting} or {"": "the first object"}


def _end_of_trainer(states: Sequence[ProcessState]) -> Outcome | dict[str, str]:
    trainer = next((state for state in states if state.name == _TRAINER), None)
    if trainer is None:
        return Outcome(1, "there is no trainer in this namespace any more")
    if trainer.done:
        return Outcome(0, "the trainer is done")
    return {_TRAINER: f"the end of the {_TRAINER}{f' ({trainer.doing})' if trainer.doing else ''}"}


def _failure(cluster: Cluster, states: Sequence[ProcessState]) -> Outcome | None:
    """What has ended for good: a Job that failed, a process with a mistake that no restart mends."""
    for state in states:
        if state.failed:
            end = state.end
            words = f"exit code {end.code}: {end.words}" if end is not None else state.failed
            return Outcome(end.code if end is not None else 1, f"{state.name}: {words}")
        if state.end is not None and state.end.code == _MISTAKE:
            return Outcome(_MISTAKE, f"{state.name}: {state.end.words}")
    return None


def _counted(state: ProcessState) -> str:
    return f"{state.name} {'done' if state.done else state.ready}"


def _explained(state: ProcessState) -> str:
    return f"{state.name} {state.ready}/{state.wanted}{f' ({state.doing})' if state.doing else ''}"
