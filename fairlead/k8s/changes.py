"""The other verbs that change a run in a cluster: scale a process, take everything down."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fairlead.errors import ClusterRefused, ConfigError
from fairlead.k8s.apply import wait_until_gone
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.manifests import COMPONENT, NAME, OURS, Manifest
from fairlead.k8s.refusals import NotFound

_Kinds = tuple[tuple[str, str], ...]

_AUTOSCALER = ("keda.sh/v1alpha1", "ScaledObject")
_WAVES: tuple[tuple[tuple[str, str], str], ...] = (
    # Who makes new pods, who asks for work, who does it, the queue: as on one machine.
    (_AUTOSCALER, OURS),
    (("batch/v1", "Job"), OURS),
    (("apps/v1", "Deployment"), f"{OURS},{COMPONENT} in (worker,gateway)"),
    (("apps/v1", "Deployment"), OURS),
    (("apps/v1", "StatefulSet"), OURS),
)
_REST: _Kinds = (
    ("keda.sh/v1alpha1", "TriggerAuthentication"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
)
_KEPT: _Kinds = (("v1", "PersistentVolumeClaim"), ("v1", "Secret"))
"""The run's files and the queue's data and passwords: only `purge` deletes them."""


def scale(cluster: Cluster, wanted: Mapping[str, int]) -> None:
    """Sets how many pods processes have; checks all names before it changes the first.

    Raises:
        ConfigError: for a name that cannot be scaled; names those that can.
        ClusterRefused: for a process whose number an autoscaler decides.
    """
    scalable = f"{OURS},{COMPONENT} in (model-service,worker,gateway)"
    known = [one["metadata"]["name"] for one in cluster.list("apps/v1", "Deployment", scalable)]
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one for one in _listed(cluster, *_AUTOSCALER)}
    for name in wanted:
        if name not in known:
            allowed = f"one of {', '.join(known)}" if known else "a process of a run; there is none here"
            raise ConfigError("scale", got=name, allowed=allowed)
        if name in scaled:
            limits = scaled[name]["spec"]
            raise ClusterRefused(
                f"{name} is scaled by KEDA, from {limits.get('minReplicaCount', 0)} to "
                f"{limits.get('maxReplicaCount', 100)}: change minReplicaCount and maxReplicaCount of its "
                "ScaledObject"
            )
    for name, replicas in wanted.items():
        cluster.scale("Deployment", name, replicas)


def take_down(
    cluster: Cluster, *, purge: bool, timeout_seconds: float, say: Callable[[str], None]
) -> list[str]:
    """Deletes what `up` has made, in the order in which processes drain, and waits for their pods to end.

    Args:
        cluster: where.
        purge: the volumes and passwords too.
        timeout_seconds: for the pods of one kind of process to end.
        say: told of every step.

    Returns:
        What is left of the run: volumes and passwords.

    Raises:
        Stalled: if pods do not end.
    """
    for kind, selector in _WAVES:
        found = _listed(cluster, *kind, selector=selector)
        for manifest in found:
            say(f"stops {manifest['metadata']['name']}")
            cluster.delete(*kind, manifest["metadata"]["name"])
        for manifest in found:
            if kind != _AUTOSCALER:
                name = manifest["metadata"]["labels"][NAME]
                wait_until_gone(cluster, name, timeout_seconds=timeout_seconds)
    for kind in (*_REST, *(_KEPT if purge else ())):
        for manifest in _listed(cluster, *kind):
            cluster.delete(*kind, manifest["metadata"]["name"])
    return [
        f"{name} {one['metadata']['name']}"
        for version, name in _KEPT
        for one in _listed(cluster, version, name)
        if "deletionTimestamp" not in one["metadata"]
    ]


def _listed(cluster: Cluster, api_version: str, kind: str, *, selector: str = OURS) -> list[Manifest]:
    """What there is of a kind; nothing of a kind that the cluster does not know."""
    try:
        return cluster.list(api_version, kind, selector)
    except NotFound:
        return []
