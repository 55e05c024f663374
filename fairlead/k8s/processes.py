"""The state of a run's processes in the cluster: how many pods are ready, and why the others are not.

Reads Deployments, StatefulSets, Jobs, JobSets, their pods and, for pods that do not start, events; changes
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from fairlead.k8s import obstacles
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.labels import NAME
from fairlead.k8s.manifests import JOB_SET, Manifest, job_spec
from fairlead.k8s.policy_nodes import LEADER_WORKER_SET, as_deployment

KINDS = (("apps/v1", "StatefulSet"), ("apps/v1", "Deployment"), ("batch/v1", "Job"))
"""Kinds of objects that own pods, besides JobSets."""
_UNEXPLAINED = ("", "starting", "ContainerCreating", "PodInitializing")
"""What pods do while they wait for something that only an event names."""
_REPLACED_AFTER = timedelta(minutes=1)
"""A pod that is created later than this after the last change of its settings has replaced another."""
QUEUE_NAME = "kueue.x-k8s.io/queue-name"
"""Label of a Job or JobSet that Kueue starts."""
_JOB_SET_NAME = "jobset.sigs.k8s.io/jobset-name"
"""Label of the Jobs of a JobSet."""


@dataclass(frozen=True, slots=True)
class ContainerEnd:
    """How a container last ended."""

    code: int
    """Its exit code."""
    message: str
    """The last line that it wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """The state of one process of the run, over all its replicas."""

    name: str
    """Name of the process, such as `policy`."""
    kind: str
    """Kind of the object that owns its pods."""
    ready: int
    """Number of ready pods."""
    wanted: int
    """Number of pods that it should have."""
    is_settled: bool
    """Whether all wanted pods are ready with the current settings; for a Job, whether it runs or is done."""
    done: bool = False
    """Whether it is a Job that has succeeded."""
    failed: str = ""
    """Why a Job has failed for good; empty if it has not."""
    doing: str = ""
    """What the pods that are not ready do or wait for."""
    restarts: int = 0
    """Restarts of all its containers, and for a Job its failed pods."""
    replaced: datetime | None = None
    """Creation of the newest pod, if it replaced one long after the last change of the settings."""
    started: datetime | None = None
    """Start of the oldest pod."""
    end: ContainerEnd | None = None
    """The last failure of a container with the current settings."""


def process_states(cluster: Cluster) -> list[ProcessState]:
    """Return the state of every process of the run, the queue first."""
    return states(cluster, *observe(cluster, cluster.ours))


def observe(cluster: Cluster, selector: str) -> tuple[list[Manifest], list[Manifest]]:
    """Return the objects that own pods, and the pods, that match a label selector, the newest pod first."""
    owners = [
        one | {"kind": kind} for version, kind in KINDS for one in cluster.list(version, kind, selector)
    ]
    # The Job of a JobSet fails whenever the JobSet restarts it.
    owners = [one for one in owners if _JOB_SET_NAME not in (one["metadata"].get("labels") or {})]
    owners += [_as_job(one) for one in cluster.list_if_known(*JOB_SET, selector=selector)]
    owners += [as_deployment(one) for one in cluster.list_if_known(*LEADER_WORKER_SET, selector=selector)]
    pods = cluster.list("v1", "Pod", selector)
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)
    return owners, pods


def states(cluster: Cluster, owners: Sequence[Manifest], pods: Sequence[Manifest]) -> list[ProcessState]:
    """Return the states of the processes of one run, from what `observe` returns; reads events if need be."""
    found = [_state(owner, [pod for pod in pods if _name(pod) == _name(owner)]) for owner in owners]
    if all(state.is_settled or not _is_unexplained(state.doing) for state in found):
        return found
    reasons = obstacles.find(cluster, pods, owners)
    return [
        replace(state, doing=reasons[state.name])
        if _is_unexplained(state.doing) and state.name in reasons
        else state
        for state in found
    ]


def _is_unexplained(doing: str) -> bool:
    """Return whether an event or a claim may say more than the state of the pod."""
    return (
        doing in _UNEXPLAINED
        or "unbound immediate PersistentVolumeClaims" in doing
        # Newer kubelets add the cause themselves.
        or (doing.startswith("ImagePullBackOff") and "ErrImagePull" not in doing)
    )


def _as_job(job_set: Manifest) -> Manifest:
    """Return a JobSet in the form of its only Job, with the end of the JobSet instead of the Job's."""
    job = job_spec(job_set | {"kind": "JobSet"})
    found = job_set | {"kind": "JobSet", "spec": job | {"suspend": job_set["spec"].get("suspend")}}
    status = job_set.get("status") or {}
    conditions = [
        one | {"type": "Complete" if one["type"] == "Completed" else one["type"]}
        for one in status.get("conditions") or ()
    ]
    # A Job is ready when all of its pods are.
    ready = sum(int(one.get("ready") or 0) for one in status.get("replicatedJobsStatus") or ())
    pods = ready * int(found["spec"].get("parallelism", 1))
    return found | {
        "status": {"conditions": conditions, "ready": pods, "failed": int(status.get("restarts") or 0)}
    }


def is_crash_looping(pod: Manifest) -> bool:
    """Return whether a container of the pod waits for its next restart after a failure."""
    return any(
        ((status.get("state") or {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff"
        for status in _containers(pod)
    )


def _name(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(NAME, ""))


def _state(owner: Manifest, pods: Sequence[Manifest]) -> ProcessState:
    spec = owner["spec"]
    status = owner.get("status") or {}
    current = [pod for pod in pods if _is_current(pod, spec["template"])]
    conditions = {one["type"]: one for one in status.get("conditions") or () if one["status"] == "True"}
    is_job = owner["kind"] in ("Job", "JobSet")
    wanted = int(spec.get("parallelism" if is_job else "replicas", 1))
    # The controller of Jobs counts ready pods late.
    ready = (
        max(int(status.get("ready") or 0), _ready(current))
        if is_job
        else int(status.get("readyReplicas") or 0)
    )
    done = "Complete" in conditions
    failed = conditions.get("Failed", {}) if is_job else {}
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
        # The pods of earlier attempts of a Job still exist; only the newest show what it does.
        doing="done" if done else _suspended(owner) or _doing(pods[:wanted] if is_job else pods),
        restarts=sum(int(one.get("restartCount", 0)) for pod in pods for one in _containers(pod))
        + (int(status.get("failed") or 0) if is_job else 0),
        replaced=_replaced(owner, current),
        started=min(starts, default=None),
        end=_last_end(current),
    )


def _suspended(owner: Manifest) -> str:
    """Return what a suspended Job waits for; empty if it is not suspended."""
    if not owner["spec"].get("suspend"):
        return ""
    queue = (owner["metadata"].get("labels") or {}).get(QUEUE_NAME)
    return f"suspended: waits in the queue {queue} of Kueue" if queue else "suspended"


def _ready(pods: Sequence[Manifest]) -> int:
    return sum(all(one.get("ready") for one in _containers(pod)) for pod in pods if _containers(pod))


def _replaced(owner: Manifest, pods: Sequence[Manifest]) -> datetime | None:
    """Return when the newest pod was created, if that was long after the last change of its owner."""
    metadata = owner["metadata"]
    changes = [metadata.get("creationTimestamp")]
    changes += [
        one.get("time") for one in metadata.get("managedFields") or () if one.get("subresource") != "status"
    ]
    created = [pod["metadata"].get("creationTimestamp") for pod in pods]
    times = [_time(one) for one in changes if one]
    newest = max((_time(one) for one in created if one), default=None)
    return newest if newest is not None and times and newest > max(times) + _REPLACED_AFTER else None


def _is_rolled_out(owner: Manifest, wanted: int) -> bool:
    """Return whether the controller has seen the current settings, and every pod has them and is ready."""
    status = owner.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= int(owner["metadata"].get("generation") or 0)
    updated = int(status.get("updatedReplicas") or 0)
    ready = int(status.get("readyReplicas") or 0)
    return seen and updated == wanted and ready >= wanted and int(status.get("replicas") or 0) == wanted


def _is_current(pod: Manifest, template: Manifest) -> bool:
    """Return whether a pod has the current settings of its process and is not being deleted."""
    return "deletionTimestamp" not in pod["metadata"] and _settings(pod["spec"]) == _settings(
        template["spec"]
    )


def _settings(spec: Manifest) -> str:
    """Return what `up` changes in a pod: images, commands, and ConfigMaps, whose names contain a hash."""
    maps = [volume["configMap"]["name"] for volume in spec.get("volumes") or () if volume.get("configMap")]
    containers = [
        (one["image"], one.get("command"), one.get("args"), one.get("envFrom")) for one in spec["containers"]
    ]
    return json.dumps([maps, containers], sort_keys=True)


def _containers(pod: Manifest) -> Sequence[Manifest]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _doing(pods: Iterable[Manifest]) -> str:
    """Return what the first pod that is not ready does; empty if all are ready."""
    return next((text for text in map(_pod_doing, pods) if text), "")


def _pod_doing(pod: Manifest) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "ending"
    for one in (pod.get("status") or {}).get("conditions") or ():
        if one["type"] == "PodScheduled" and one["status"] == "False":
            message = one.get("message") or one.get("reason") or "no reason given"
            return f"not scheduled: {_first_clause(message)}"
    statuses = _containers(pod)
    return next((text for text in map(_container_doing, statuses) if text), "" if statuses else "starting")


def _first_clause(message: str) -> str:
    """Return why the scheduler found no node, without the number of nodes and the attempt to preempt."""
    clause = message.partition(" preemption: ")[0].rstrip(". ")
    count, separator, reasons = clause.partition(" nodes are available: ")
    return reasons if separator and "/" in count else clause


def _container_doing(status: Manifest) -> str:
    state = status.get("state") or {}
    if waiting := state.get("waiting"):
        end = _ended(status)
        if waiting.get("reason") == "CrashLoopBackOff" and end is not None:
            return f"ended with exit code {end.code}, restarting: {end.message}"
        return ": ".join(part for part in (waiting.get("reason"), waiting.get("message")) if part)
    if state.get("terminated"):
        end = _ended(status)
        return f"ended with exit code {end.code}: {end.message}" if end is not None else ""
    if status.get("ready"):
        return ""
    return "running, not ready yet" if status.get("started") else "starting"


def _last_end(pods: Iterable[Manifest]) -> ContainerEnd | None:
    ends = (_ended(status) for pod in pods for status in _containers(pod))
    return next((end for end in ends if end is not None), None)


def _ended(status: Manifest) -> ContainerEnd | None:
    """Return the last end of a container if it failed."""
    state = status.get("state") or {}
    last = status.get("lastState") or {}
    found = state.get("terminated") or last.get("terminated")
    if not found or found.get("exitCode") == 0:
        return None
    lines = str(found.get("message") or found.get("reason") or "").strip().splitlines()
    return ContainerEnd(int(found["exitCode"]), lines[-1] if lines else "no message")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
