"""Brings a run in a cluster to its manifests: passwords, plan, apply, delete what is left over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fairlead.errors import ClusterRefused
from fairlead.k8s import prune, waiting
from fairlead.k8s.changes import apply_all
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.manifests import Manifest
from fairlead.k8s.plan import plan
from fairlead.k8s.secret import SECRET, ensure_secrets


def deploy(
    cluster: Cluster,
    manifests: Sequence[Manifest],
    whole: Sequence[Manifest],
    *,
    volume: str,
    force_conflicts: bool,
    timeout_seconds: float,
    report: Callable[[str], None],
) -> None:
    """Create or change the objects of a run; do not wait until they are ready.

    Args:
        cluster: the connection.
        manifests: the objects to apply.
        whole: the objects of the whole run, which are not deleted.
        volume: an existing claim that the run uses; empty if it has its own.
        force_conflicts: take over fields that another manager owns.
        timeout_seconds: how long the pods of a Job that is replaced may take to end.
        report: called with a line about each thing that is done.

    Raises:
        ClusterRefused: the cluster refuses something; names it.
        Stalled: the pods of a Job do not end.
    """
    if volume and cluster.get("v1", "PersistentVolumeClaim", volume) is None:
        raise ClusterRefused(
            f"namespace {cluster.namespace} has no PersistentVolumeClaim {volume}: create it, or leave out "
            "--volume for one of the run's own. Nothing was applied"
        )
    if ensure_secrets(cluster, manifests, whole):
        report(f"created the Secret {cluster.named(SECRET)} with new passwords")
    expected = plan(cluster, manifests, whole, force_conflicts=force_conflicts)
    for name, reasons in expected.restarted.items():
        report(f"restarting {name}: {', '.join(reasons)}")
    for superfluous in expected.deleted:
        report(f"will delete {superfluous}, which these manifests do not have")
    apply_all(
        cluster, manifests, force_conflicts=force_conflicts, timeout_seconds=timeout_seconds, report=report
    )
    report(f"applied {len(manifests)} objects to namespace {cluster.namespace}")
    for deleted in prune.delete_superfluous(cluster, whole):
        report(f"deleted {deleted}")
    for pod in waiting.restart_crashed(cluster):
        report(f"restarting {pod}")
