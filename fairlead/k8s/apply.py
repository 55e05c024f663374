"""Brings a namespace to what the manifests say: checks first, then every object in its order.

Server-side apply, so that fields which others own (an autoscaler's replicas) stay theirs. A Job cannot be
changed: one that should differ, or has failed, makes room for another, which goes on from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fairlead.errors import ClusterRefused, Stalled
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.manifests import NAME, OURS, Manifest
from fairlead.k8s.refusals import Immutable

_FIRST = ("ServiceAccount", "Secret", "ConfigMap", "PersistentVolumeClaim", "Service")
_POLL_SECONDS = 0.5


def apply_all(
    cluster: Cluster,
    manifests: Sequence[Manifest],
    *,
    force_conflicts: bool,
    timeout_seconds: float,
    say: Callable[[str], None],
) -> None:
    """Applies every object.

    Args:
        cluster: where to.
        manifests: as rendered.
        force_conflicts: take over fields that others own.
        timeout_seconds: how long a Job that is replaced may take to go.
        say: told of what is not a mere change of an object.

    Raises:
        ClusterRefused: before anything is changed, for a kind that the cluster does not know.
        Stalled: if a Job does not go.
    """
    for api_version, kind in sorted({(one["apiVersion"], one["kind"]) for one in manifests}):
        cluster.path(api_version, kind)
    for manifest in sorted(manifests, key=_order):
        if manifest["kind"] == "Job":
            _apply_job(cluster, manifest, force_conflicts, timeout_seconds, say)
        else:
            cluster.apply(manifest, force_conflicts=force_conflicts)


def condition(manifest: Manifest, kind: str) -> Manifest | None:
    """A condition of an object that is true, such as `Failed` of a Job; None otherwise."""
    found = (manifest.get("status") or {}).get("conditions") or ()
    return next((one for one in found if one["type"] == kind and one["status"] == "True"), None)


def wait_until_gone(cluster: Cluster, name: str, *, timeout_seconds: float) -> None:
    """Waits until no pod of a process is left.

    Raises:
        Stalled: names the pods that are.
    """
    deadline = time.monotonic() + timeout_seconds
    while pods := cluster.list("v1", "Pod", f"{OURS},{NAME}={name}"):
        if time.monotonic() > deadline:
            names = ", ".join(pod["metadata"]["name"] for pod in pods)
            raise Stalled(f"waited {timeout_seconds:.0f} s for the end of {names}")
        time.sleep(_POLL_SECONDS)


def _order(manifest: Manifest) -> int:
    kind = manifest["kind"]
    return _FIRST.index(kind) if kind in _FIRST else len(_FIRST)


def _apply_job(
    cluster: Cluster,
    manifest: Manifest,
    force_conflicts: bool,
    timeout_seconds: float,
    say: Callable[[str], None],
) -> None:
    name = manifest["metadata"]["name"]
    found = cluster.get("batch/v1", "Job", name)
    if found is not None and condition(found, "Failed"):
        say(f"{name} had failed: a new Job goes on from the checkpoint")
    else:
        try:
            cluster.apply(manifest, force_conflicts=force_conflicts)
        except Immutable:
            say(f"{name} is replaced by a Job with the new settings, which goes on from the checkpoint")
        else:
            return
    _replace_job(cluster, name, timeout_seconds)
    cluster.apply(manifest, force_conflicts=force_conflicts)


def _replace_job(cluster: Cluster, name: str, timeout_seconds: float) -> None:
    cluster.delete("batch/v1", "Job", name)
    wait_until_gone(cluster, name, timeout_seconds=timeout_seconds)
    if cluster.get("batch/v1", "Job", name) is not None:
        raise ClusterRefused(f"Job {name} was deleted and is still there: something holds it by a finalizer")
