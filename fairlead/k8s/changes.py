"""The changes that `fairlead k8s` makes to a run in a cluster: apply, scale, take down.

`apply_all` uses server-side apply, so that fields with another owner (an autoscaler's replicas) keep their
values. The template of a Job or JobSet is immutable: one that has failed or needs other settings is replaced
by a new one, which continues from the checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from fairlead.errors import ClusterRefused, ConfigError, Stalled
from fairlead.k8s.cluster import Cluster, ImmutableObject
from fairlead.k8s.manifests import COMPONENT, JOB_SET, NAME, OURS, Manifest

_Kinds = tuple[tuple[str, str], ...]

_APPLIED_FIRST = ("ServiceAccount", "Secret", "ConfigMap", "PersistentVolumeClaim", "Service")
_POLL_SECONDS = 0.5

_AUTOSCALER = ("keda.sh/v1alpha1", "ScaledObject")
_JOB = ("batch/v1", "Job")
_STOP_ORDER: tuple[tuple[tuple[str, str], str], ...] = (
    # The autoscaler, which creates pods; then clients of the services, the services and the queue, as on one
    # machine.
    (_AUTOSCALER, OURS),
    (JOB_SET, OURS),
    (_JOB, OURS),
    (("apps/v1", "Deployment"), f"{OURS},{COMPONENT} in (worker,gateway)"),
    (("apps/v1", "Deployment"), OURS),
    (("apps/v1", "StatefulSet"), OURS),
)
_WITHOUT_PODS: _Kinds = (
    ("keda.sh/v1alpha1", "TriggerAuthentication"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
)
_KEPT: _Kinds = (("v1", "PersistentVolumeClaim"), ("v1", "Secret"))
"""The run's files, the queue's data and passwords, and what people said: only `purge` deletes them."""


def apply_all(
    cluster: Cluster,
    manifests: Sequence[Manifest],
    *,
    force_conflicts: bool,
    timeout_seconds: float,
    report: Callable[[str], None],
) -> None:
    """Apply every object.

    Args:
        cluster: the connection.
        manifests: the objects as rendered.
        force_conflicts: take over fields that another manager owns.
        timeout_seconds: how long the pods of a Job that is replaced may take to end.
        report: called with a line about each Job that is replaced.

    Raises:
        ClusterRefused: before anything is changed, if the cluster does not know a kind.
        Stalled: if the pods of a Job do not end.
    """
    for api_version, kind in sorted({(one["apiVersion"], one["kind"]) for one in manifests}):
        cluster.path(api_version, kind)
    for manifest in sorted(manifests, key=_order):
        if manifest["kind"] in ("Job", "JobSet"):
            _apply_job(cluster, manifest, force_conflicts, timeout_seconds, report)
        else:
            cluster.apply(manifest, force_conflicts=force_conflicts)


def condition(manifest: Manifest, kind: str) -> Manifest | None:
    """Return a condition of an object that is true, such as `Failed` of a Job; None otherwise."""
    found = (manifest.get("status") or {}).get("conditions") or ()
    return next((one for one in found if one["type"] == kind and one["status"] == "True"), None)


def wait_until_gone(cluster: Cluster, name: str, *, timeout_seconds: float) -> None:
    """Wait until the pods of a process have ended.

    Raises:
        Stalled: if some have not ended in time; names them.
    """
    deadline = time.monotonic() + timeout_seconds
    while pods := cluster.list("v1", "Pod", f"{OURS},{NAME}={name}"):
        if time.monotonic() > deadline:
            names = ", ".join(pod["metadata"]["name"] for pod in pods)
            raise Stalled(f"waited {timeout_seconds:.0f} s for {names} to end")
        time.sleep(_POLL_SECONDS)


def scale(cluster: Cluster, wanted: Mapping[str, int]) -> None:
    """Set the number of pods of processes; all names are checked before the first is changed.

    Raises:
        ConfigError: if a process cannot be scaled; names those that can.
        ClusterRefused: if an autoscaler sets the number of pods of a process.
    """
    scalable = f"{OURS},{COMPONENT} in (model-service,worker,gateway)"
    known = [one["metadata"]["name"] for one in cluster.list("apps/v1", "Deployment", scalable)]
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one for one in cluster.list_if_known(*_AUTOSCALER)}
    for name in wanted:
        if name not in known:
            allowed = (
                f"one of {', '.join(known)}" if known else "a process of a run; this namespace has no run"
            )
            raise ConfigError("scale", got=name, allowed=allowed)
        if name in scaled:
            limits = scaled[name]["spec"]
            raise ClusterRefused(
                f"{name} is scaled by KEDA, from {limits.get('minReplicaCount', 0)} to "
                f"{limits.get('maxReplicaCount', 100)}: change minReplicaCount and maxReplicaCount of its "
                "ScaledObject instead"
            )
    for name, replicas in wanted.items():
        cluster.scale("Deployment", name, replicas)


def take_down(
    cluster: Cluster, *, purge: bool, timeout_seconds: float, report: Callable[[str], None]
) -> list[str]:
    """Delete what `up` has created, in the order in which processes drain, and wait for their pods to end.

    Args:
        cluster: the connection.
        purge: delete volumes and passwords too.
        timeout_seconds: how long the pods of one process may take to end.
        report: called with a line for each process that is stopped.

    Returns:
        The objects of the run that still exist: volumes and passwords.

    Raises:
        Stalled: if pods do not end.
    """
    for kind, selector in _STOP_ORDER:
        found = cluster.list_if_known(*kind, selector=selector)
        for manifest in found:
            report(f"stopping {manifest['metadata']['name']}")
            cluster.delete(*kind, manifest["metadata"]["name"])
        for manifest in found:
            if kind != _AUTOSCALER:
                name = manifest["metadata"]["labels"][NAME]
                wait_until_gone(cluster, name, timeout_seconds=timeout_seconds)
    for kind in (*_WITHOUT_PODS, *(_KEPT if purge else ())):
        for manifest in cluster.list_if_known(*kind):
            cluster.delete(*kind, manifest["metadata"]["name"])
    return [
        f"{name} {one['metadata']['name']}"
        for version, name in _KEPT
        for one in cluster.list_if_known(version, name)
        if "deletionTimestamp" not in one["metadata"]
    ]


def _order(manifest: Manifest) -> int:
    kind = manifest["kind"]
    return _APPLIED_FIRST.index(kind) if kind in _APPLIED_FIRST else len(_APPLIED_FIRST)


def _apply_job(
    cluster: Cluster,
    manifest: Manifest,
    force_conflicts: bool,
    timeout_seconds: float,
    report: Callable[[str], None],
) -> None:
    name, kind = manifest["metadata"]["name"], manifest["kind"]
    other = JOB_SET if kind == "Job" else _JOB
    if any(one["metadata"]["name"] == name for one in cluster.list_if_known(*other)):
        report(f"{name} was a {other[1]}: a {kind} replaces it and continues from the checkpoint")
        _delete_job(cluster, other, name, timeout_seconds)
    found = cluster.get(manifest["apiVersion"], kind, name)
    if found is not None and condition(found, "Failed"):
        report(f"{name} had failed: a new {kind} continues from the checkpoint")
    else:
        try:
            cluster.apply(manifest, force_conflicts=force_conflicts)
        except ImmutableObject:
            report(f"{name} has new settings: a new {kind} replaces it and continues from the checkpoint")
        else:
            return
    _delete_job(cluster, (manifest["apiVersion"], kind), name, timeout_seconds)
    cluster.apply(manifest, force_conflicts=force_conflicts)


def _delete_job(cluster: Cluster, kind: tuple[str, str], name: str, timeout_seconds: float) -> None:
    cluster.delete(*kind, name)
    wait_until_gone(cluster, name, timeout_seconds=timeout_seconds)
    if cluster.get(*kind, name) is not None:
        raise ClusterRefused(f"{kind[1]} {name} was deleted but still exists: a finalizer keeps it")
