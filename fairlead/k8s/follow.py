"""Follows the logs of all pods of a process: through restarts, new pods and connections that are cut.

The API resumes a log at a second: lines are requested with their times, and those already shown are skipped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fairlead.backoff import Backoff
from fairlead.errors import ClusterRefused, Transient
from fairlead.k8s.changes import condition
from fairlead.k8s.cluster import Cluster, ClusterForbidden
from fairlead.k8s.labels import NAME
from fairlead.k8s.manifests import Manifest
from fairlead.k8s.processes import observe

_PAUSE = Backoff(first_seconds=0.5, longest_seconds=10.0)
_JOBS = ("Job", "JobSet")


def container_of(pod: Manifest, process: str) -> str:
    """Return the container of a pod that runs the process itself, not one beside it."""
    names = [str(one["name"]) for one in pod["spec"]["containers"]]
    return process if process in names else names[0]


def follow(
    cluster: Cluster,
    process: str,
    *,
    lines: int,
    poll_seconds: float,
    write: Callable[[str, str], None],
    report: Callable[[str], None],
) -> None:
    """Write the logs of a process until it no longer exists, or its Job has ended.

    Args:
        cluster: the connection.
        process: name of the process, such as `policy`.
        lines: lines of each pod that were written before.
        poll_seconds: pause between two looks for new pods.
        write: called with the name of the pod and a line; from one thread at a time.
        report: called with a line about a connection that was lost.

    Raises:
        ClusterForbidden: the account may not read logs.
    """
    followers: dict[str, _Follower] = {}
    over = threading.Event()
    lock = threading.Lock()
    failures = 0

    def locked(pod: str, line: str) -> None:
        with lock:
            write(pod, line)

    try:
        while True:
            try:
                owners, pods = observe(cluster, f"{cluster.ours},{NAME}={process}")
                failures = 0
            except Transient as error:
                failures += 1
                report(str(error))
                over.wait(_PAUSE.seconds(failures))
                continue
            for pod in reversed(pods):
                name = pod["metadata"]["name"]
                if name not in followers:
                    reader = _PodLog(cluster, name, container_of(pod, process), lines, locked, report, over)
                    followers[name] = _Follower(reader)
                    followers[name].thread.start()
                followers[name].reader.look(pod)
            is_over = _has_ended(owners)
            for name, follower in followers.items():
                if follower.reader.refused is not None:
                    raise follower.reader.refused
                if is_over or all(pod["metadata"]["name"] != name for pod in pods):
                    follower.reader.has_ended.set()
            if is_over and not any(one.thread.is_alive() for one in followers.values()):
                return
            over.wait(poll_seconds)
    finally:
        over.set()


def _has_ended(owners: list[Manifest]) -> bool:
    return all(
        one["kind"] in _JOBS and (condition(one, "Complete") or condition(one, "Failed")) for one in owners
    )


class _Follower:
    """A pod's log and the thread that reads it."""

    def __init__(self, reader: _PodLog) -> None:
        self.reader = reader
        # A read that waits for a line must not keep the process from ending.
        self.thread = threading.Thread(target=reader.run, name=f"log of {reader.pod}", daemon=True)


@dataclass(slots=True)
class _PodLog:
    """Reads the log of one pod."""

    cluster: Cluster
    pod: str
    container: str
    lines: int
    write: Callable[[str, str], None]
    report: Callable[[str], None]
    over: threading.Event
    has_ended: threading.Event = field(default_factory=threading.Event)
    """The pod has ended or no longer exists: what is in its log is all."""
    refused: ClusterForbidden | None = None
    """Why the log cannot be read at all."""
    restarts: int = 0
    """Restarts of the container, as last seen."""
    _restarts_read: int = 0
    _refusal: str = ""
    _last: str = ""
    """Time of the last line that was written."""
    _count: int = 0
    """Lines with this time that were written."""

    def look(self, pod: Manifest) -> None:
        """Take note of the state of the pod."""
        status = pod.get("status") or {}
        for one in status.get("containerStatuses") or ():
            if one.get("name", self.container) == self.container:
                self.restarts = int(one.get("restartCount") or 0)
        if status.get("phase") in ("Succeeded", "Failed"):
            self.has_ended.set()

    def run(self) -> None:
        """Write lines until the pod has ended and its log is read."""
        failures = 0
        while not self.over.is_set():
            is_last = self.has_ended.is_set()
            try:
                self._read_previous()
                self._read()
                failures = 0
            except ClusterForbidden as error:
                self.refused = error
                return
            except ClusterRefused as error:  # It has not started yet, or no longer exists.
                if not is_last and str(error) != self._refusal:
                    self._refusal = str(error)
                    self.report(f"{self.pod}: {error}")
                failures = 0
            except Transient as error:
                failures += 1
                if failures > 1:  # A log that is quiet is requested again, which is no failure.
                    self.report(f"{self.pod}: {error}")
            if is_last and not failures:
                return
            self.over.wait(_PAUSE.seconds(max(failures, 1)))

    def _read_previous(self) -> None:
        """Write what the container wrote before a restart that came while it was not read."""
        if not self._last or (pod := self.cluster.get("v1", "Pod", self.pod)) is None:
            return
        self.look(pod)
        if self._restarts_read == self.restarts:
            return
        self._restarts_read = self.restarts
        try:
            self._read(previous="true", follow="false")
        except ClusterRefused:  # Its log is gone.
            return

    def _read(self, **more: str) -> None:
        query = {"timestamps": "true", "container": self.container, **more}
        skipped = 0
        if self._last:
            query["sinceTime"] = f"{self._last[:19]}Z"
        else:
            query["tailLines"] = str(self.lines)
        resumed_at, shown = self._last, self._count
        for line in self.cluster.log_lines(self.pod, query):
            time, _, text = line.partition(" ")
            if resumed_at and time < resumed_at:
                continue
            if resumed_at and time == resumed_at and skipped < shown:
                skipped += 1
                continue
            self._count = self._count + 1 if time == self._last else 1
            self._last = time
            self.write(self.pod, text)
