"""What keeps a pod from starting, as events name it: an unprovisioned volume, a failed mount, a quota.

A pod in this state says only `Pending` or `ContainerCreating`. Reads claims and events; changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fairlead.k8s.cluster import Cluster, ClusterForbidden
from fairlead.k8s.labels import NAME
from fairlead.k8s.manifests import Manifest

_CLAIM = "PersistentVolumeClaim"
_NOT_OBSTACLES = ("FailedScheduling", "Unhealthy", "BackOff")
"""Reasons of events that the state of the pod shows better, and without those that no longer hold."""

_MADE_BY = {
    "Deployment": ("ReplicaSet", "-[a-z0-9]+"),
    "JobSet": ("Job", "-[a-z0-9]+-[0-9]+"),
    "LeaderWorkerSet": ("StatefulSet", "(-[0-9]+)?"),
}
"""By kind of owner: the kind of the objects between it and its pods, and the rest of their names."""
_WITHOUT_A_CAUSE = ("Error: ErrImagePull", "Error: ImagePullBackOff")
"""Messages of events that follow one with the cause."""


def find(cluster: Cluster, pods: Sequence[Manifest], owners: Sequence[Manifest]) -> dict[str, str]:
    """Return, by process, what keeps its pods from starting; nothing for a process without a known obstacle.

    Args:
        cluster: the connection; an account that may not read events gets no explanations.
        pods: the pods of the run.
        owners: the objects that own them.
    """
    try:
        claims = {one["metadata"]["name"]: one for one in cluster.list("v1", _CLAIM, "")}
        events = _warnings(cluster)
    except ClusterForbidden:
        return {}
    found: dict[str, str] = {}
    for owner in owners:
        name = _process(owner)
        mine = [pod for pod in pods if _process(pod) == name and "deletionTimestamp" not in pod["metadata"]]
        texts = [_of_pod(pod, claims, events) for pod in mine]
        # A quota may allow some of the pods.
        texts += [_of_owner(owner, events)] if len(mine) < _wanted(owner) else []
        if text := next((text for text in texts if text), ""):
            found[name] = text
    return found


def _warnings(cluster: Cluster) -> dict[tuple[str, str], Manifest]:
    """Return the newest warning about each object, by kind and name."""
    events = [one for one in cluster.list("v1", "Event", "") if _is_obstacle(one)]
    events.sort(key=_when)
    return {(one["involvedObject"]["kind"], one["involvedObject"]["name"]): one for one in events}


def _is_obstacle(event: Manifest) -> bool:
    return (
        event.get("type") == "Warning"
        and event.get("reason") not in _NOT_OBSTACLES
        and event.get("message") not in _WITHOUT_A_CAUSE
    )


def _when(event: Manifest) -> str:
    return str(
        event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    )


def _of_pod(pod: Manifest, claims: Mapping[str, Manifest], events: Mapping[tuple[str, str], Manifest]) -> str:
    for volume in pod["spec"].get("volumes") or ():
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim is None:
            continue
        if claim not in claims:
            return f"volume {claim} does not exist"
        if (claims[claim].get("status") or {}).get("phase") != "Bound":
            return f"volume {claim} is not provisioned{_because(events.get((_CLAIM, claim)))}"
    event = events.get(("Pod", pod["metadata"]["name"]))
    return _because(event).removeprefix(": ") if event else ""


def _of_owner(owner: Manifest, events: Mapping[tuple[str, str], Manifest]) -> str:
    """Return why a process lacks pods: a quota or a policy of the namespace refuses them."""
    name = owner["metadata"]["name"]
    for (kind, about), event in events.items():
        of_owner = (kind, about) == (owner["kind"], name)
        made_by, rest = _MADE_BY.get(owner["kind"], ("", ""))
        if of_owner or (kind == made_by and re.fullmatch(re.escape(name) + rest, about)):
            return _because(event).removeprefix(": ")
    for one in (owner.get("status") or {}).get("conditions") or ():
        if one["type"] == "ReplicaFailure" and one["status"] == "True":
            return f"{one.get('reason', 'ReplicaFailure')}: {one.get('message', '')}"
    return ""


def _wanted(owner: Manifest) -> int:
    spec = owner["spec"]
    return int(spec.get("parallelism" if owner["kind"] in ("Job", "JobSet") else "replicas", 1))


def _because(event: Manifest | None) -> str:
    if event is None:
        return ""
    message = str(event.get("message") or "").strip().partition("\n")[0]
    return f": {event.get('reason')}: {message}" if message else f": {event.get('reason')}"


def _process(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(NAME, ""))
