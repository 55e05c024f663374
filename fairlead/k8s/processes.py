"""What the processes of a run are doing in the cluster, in words: how many are ready, and why others are not.

Reads Deployments, StatefulSets, Jobs and their pods; changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fairlead.k8s.cluster import Cluster
from fairlead.k8s.manifests import NAME, Manifest

KINDS = (("apps/v1", "StatefulSet"), ("apps/v1", "Deployment"), ("batch/v1", "Job"))
"""What has pods."""


@dataclass(frozen=True, slots=True)
class End:
    """How a container ended for the last time."""

    code: int
    """Its exit code."""
    words: str
    """The last line that it wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """One process of the run, all its replicas together."""

    name: str
    """Such as `policy`."""
    kind: str
    """What has its pods."""
    ready: int
    """Pods that are."""
    wanted: int
    """Pods that there should be."""
    is_settled: bool
    """As many ready pods of the present settings as wanted; a Job: it runs, or is done."""
    done: bool = False
    """A Job that succeeded."""
    failed: str = ""
    """Why a Job will not be tried again."""
    doing: str = ""
    """What the pods that are not ready do or wait for."""
    restarts: int = 0
    """Of all containers together."""
    started: datetime | None = None
    """Of the oldest pod."""
    end: End | None = None
    """The last end of a container of the present settings that ended by itself and not well."""


def survey(cluster: Cluster) -> list[ProcessState]:
    """The state of every process, the queue first."""
    owners = [one | {"kind": kind} for version, kind in KINDS for one in cluster.list(version, kind)]
    pods = cluster.list("v1", "Pod")
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)
    return [_state(owner, [pod for pod in pods if _name(pod) == _name(owner)]) for owner in owners]


def crashed(pod: Manifest) -> bool:
    """Whether a pod waits, ever longer, for its next start."""
    return any(
        ((status.get("state") or {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff"
        for status in _containers(pod)
    )


def _name(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(NAME, ""))


def _state(owner: Manifest, pods: Sequence[Manifest]) -> ProcessState:
    spec, status = owner["spec"], owner.get("status") or {}
    current = [pod for pod in pods if _is_current(pod, spec["template"])]
    conditions = {one["type"]: one for one in status.get("conditions") or () if one["status"] == "True"}
    is_job = owner["kind"] == "Job"
    wanted = int(spec.get("parallelism" if is_job else "replicas", 1))
    ready = int(status.get("ready" if is_job else "readyReplicas") or 0)
    done, failed = "Complete" in conditions, conditions.get("Failed", {}) if is_job else {}
    starts = [_time(pod["status"]["startTime"]) for pod in pods if (pod.get("status") or {}).get("startTime")]
    settled = done or ready >= wanted if is_job else _is_rolled_out(owner, wanted)
    return ProcessState(
        name=_name(owner),
        kind=owner["kind"],
        ready=ready,
        wanted=wanted,
        is_settled=settled,
        done=done,
        failed=str(failed.get("message") or failed.get("reason") or ""),
        # The pods of earlier tries of a Job stay; only the newest says what it does.
        doing="done" if done else _doing(pods[:1] if is_job else pods),
        restarts=sum(int(one.get("restartCount", 0)) for pod in pods for one in _containers(pod)),
        started=min(starts, default=None),
        end=_last_end(current),
    )


def _is_rolled_out(owner: Manifest, wanted: int) -> bool:
    """Whether the controller has seen the present settings and every pod has them and is ready."""
    status = owner.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= int(owner["metadata"].get("generation") or 0)
    updated, ready = int(status.get("updatedReplicas") or 0), int(status.get("readyReplicas") or 0)
    return seen and updated == wanted and ready >= wanted and int(status.get("replicas") or 0) == wanted


def _is_current(pod: Manifest, template: Manifest) -> bool:
    """Whether a pod has the settings that its process has now, and stays."""
    return "deletionTimestamp" not in pod["metadata"] and _settings(pod["spec"]) == _settings(
        template["spec"]
    )


def _settings(spec: Manifest) -> str:
    """What `up` changes of a pod: images, commands, and ConfigMaps, whose names tell their contents."""
    maps = [volume["configMap"]["name"] for volume in spec.get("volumes") or () if volume.get("configMap")]
    containers = [
        (one["image"], one.get("command"), one.get("args"), one.get("envFrom")) for one in spec["containers"]
    ]
    return json.dumps([maps, containers], sort_keys=True)


def _containers(pod: Manifest) -> Sequence[Manifest]:
    return (pod.get("status") or {}).get("containerStatuses") or ()


def _doing(pods: Iterable[Manifest]) -> str:
    """What the first pod that is not ready does; nothing if all are."""
    return next((words for words in map(_pod_doing, pods) if words), "")


def _pod_doing(pod: Manifest) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "ends"
    for one in (pod.get("status") or {}).get("conditions") or ():
        if one["type"] == "PodScheduled" and one["status"] == "False":
            return f"has no node: {one.get('message') or one.get('reason') or 'unknown why'}"
    statuses = _containers(pod)
    return next((words for words in map(_container_doing, statuses) if words), "" if statuses else "starts")


def _container_doing(status: Manifest) -> str:
    state = status.get("state") or {}
    if waiting := state.get("waiting"):
        end = _ended(status)
        if waiting.get("reason") == "CrashLoopBackOff" and end is not None:
            return f"ended with {end.code} and is started again: {end.words}"
        return ": ".join(part for part in (waiting.get("reason"), waiting.get("message")) if part)
    if state.get("terminated"):
        end = _ended(status)
        return f"ended with {end.code}: {end.words}" if end is not None else ""
    if status.get("ready"):
        return ""
    return "runs, not ready yet" if status.get("started") else "starts"


def _last_end(pods: Iterable[Manifest]) -> End | None:
    ends = (_ended(status) for pod in pods for status in _containers(pod))
    return next((end for end in ends if end is not None), None)


def _ended(status: Manifest) -> End | None:
    """The end of a container if it was not a good one."""
    state, last = status.get("state") or {}, status.get("lastState") or {}
    found = state.get("terminated") or last.get("terminated")
    if not found or found.get("exitCode") == 0:
        return None
    lines = str(found.get("message") or found.get("reason") or "it said nothing").strip().splitlines()
    return End(int(found["exitCode"]), lines[-1] if lines else "it said nothing")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
