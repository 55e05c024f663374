"""The trainer's spans: the dispatch of each traced task, every update, and the gradient step of its tasks.

A task's trace and that of the update that trained it refer to each other by links: an update has many tasks,
and its weights reach the policy replicas under its own trace. Knows nothing about tensors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fairlead import tracing
from fairlead.transports.rollouts.base import OutcomeEntry, Sending
from fairlead.types import DeadLetter, PromptTask, WeightVersion


def dispatched(
    tasks: Sequence[PromptTask], sendings: Sequence[Sending], *, begun_ns: int, update: int
) -> None:
    """Record the first span of each traced task that was sent.

    A further sending of a task by the same incarnation refers to the one before.

    Args:
        tasks: the tasks.
        sendings: their sendings, in the same order.
        begun_ns: when sending began, in ns since the epoch.
        update: updates done.
    """
    if not tracing.is_on():
        return
    ended = time.time_ns()
    for task, sending in zip(tasks, sendings, strict=True):
        context = _of(task.task_id, sending)
        if context is None or not context.is_sampled:
            continue
        earlier = _of(task.task_id, Sending(sending.incarnation, sending.number - 1))
        start = tracing.Start(
            context=context,
            start_ns=begun_ns,
            links=[earlier] if earlier is not None and sending.number > 1 else [],
            attributes={
                "fairlead.task": task.task_id,
                "fairlead.sending": f"{sending.incarnation}.{sending.number}",
                "fairlead.update": update,
            },
        )
        tracing.record("dispatch", start, end_ns=ended)


class UpdateTrace:
    """Collects the phases of an update, and records them when it has ended."""

    def __init__(self) -> None:
        self._version: WeightVersion | None = None
        self._phases: list[tuple[str, float, float]] = []
        self._entries: Sequence[OutcomeEntry] = ()

    def begin(self, version: WeightVersion) -> None:
        """End the present update, and begin the one that will produce `version`."""
        self.end()
        self._version = version

    def phase(self, name: str, begun: float, ended: float) -> None:
        """Note a phase of the trainer that has ended, or a part of it; times in seconds since the epoch."""
        if self._version is None:
            return
        if self._phases and self._phases[-1][0] == name:
            begun = self._phases.pop()[1]
        self._phases.append((name, begun, ended))

    def trained(self, entries: Sequence[OutcomeEntry]) -> None:
        """Note the batch that the update has trained on."""
        if tracing.is_on():
            self._entries = [entry for entry in entries if not isinstance(entry.outcome.result, DeadLetter)]

    def end(self) -> None:
        """Record the update with its phases, and the gradient step in the trace of each of its tasks."""
        version, phases, entries = self._version, self._phases, self._entries
        self._version, self._phases, self._entries = None, [], ()
        if version is None or not phases:
            return
        context = tracing.update_context(version.incarnation, version.update)
        if context is None:
            return
        attributes: dict[str, str | int | float | bool] = {
            "fairlead.version": str(version),
            "fairlead.update": version.update,
        }
        start = tracing.Start(context=context, start_ns=_ns(phases[0][1]), attributes=attributes)
        tracing.record("update", start, end_ns=_ns(phases[-1][2]))
        found = (_of(entry.outcome.task.task_id, entry.sending) for entry in entries)
        tasks = [each for each in found if each is not None and each.is_sampled]
        for name, begun, ended in phases:
            links = tasks if name == "train" else []
            phase = tracing.record(
                name,
                tracing.Start(parent=context, start_ns=_ns(begun), links=links, attributes={}),
                end_ns=_ns(ended),
            )
            for task in links:
                start = tracing.Start(
                    parent=task,
                    start_ns=_ns(begun),
                    links=[] if phase is None else [phase],
                    attributes=attributes,
                )
                tracing.record("train", start, end_ns=_ns(ended))


def _of(task: int, sending: Sending) -> tracing.SpanContext | None:
    return tracing.task_context(task, (sending.incarnation, sending.number))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
