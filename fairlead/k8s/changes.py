"""The changes that `fairlead k8s` makes to a run in a cluster: apply, scale, take down.

`apply_all` uses server-side apply, so that fields with another owner (an autoscaler's replicas) keep their
values. The template of a Job or JobSet is immutable: one that has failed or needs other settings is replaced
by a new one, which continues from the checkpoint.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from fairlead.errors import ClusterRefused, ConfigError, Stalled
from fairlead.k8s.cluster import Cluster, ImmutableObject
from fairlead.k8s.labels import COMPONENT, NAME
from fairlead.k8s.manifests import BACKUP, JOB_SET, Manifest
from fairlead.k8s.policy_nodes import LEADER_WORKER_SET
from fairlead.k8s.secret import SECRET
from fairlead.k8s.settings import pod_templates

_Kinds = tuple[tuple[str, str], ...]

_APPLIED_FIRST = ("ServiceAccount", "Secret", "ConfigMap", "PersistentVolumeClaim", "Service")
_POLL_SECONDS = 0.5

_KEDA = ("keda.sh/v1alpha1", "ScaledObject")
_HPA = ("autoscaling/v2", "HorizontalPodAutoscaler")
_DEPLOYMENT = ("apps/v1", "Deployment")
_JOB = ("batch/v1", "Job")
_CRON_JOB = ("batch/v1", "CronJob")
_STAGE = re.compile(r"trainer\.(sft|reward_model|preference|ppo)")
STOP_ORDER: tuple[tuple[tuple[str, str], str], ...] = (
    # Autoscalers, which create pods; then clients of the services, the services and the queue, as on one
    # machine.
    (_KEDA, ""),
    (_HPA, ""),
    (_CRON_JOB, ""),
    (JOB_SET, ""),
    (_JOB, ""),
    (("apps/v1", "Deployment"), f",{COMPONENT} in (worker,gateway)"),
    (("apps/v1", "Deployment"), ""),
    (LEADER_WORKER_SET, ""),
    (("apps/v1", "StatefulSet"), ""),
)
"""Kinds that have pods, each with what it adds to the run's selector, in the order in which `down` stops
them.
"""
WITHOUT_PODS: _Kinds = (
    ("keda.sh/v1alpha1", "TriggerAuthentication"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("cert-manager.io/v1", "Certificate"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
)
"""The other kinds that `up` applies and `down` deletes."""
_CLAIM = ("v1", "PersistentVolumeClaim")
"""The run's files, the queue's data and what people said: only `purge` deletes them, and the passwords. It
keeps backups.
"""


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
    check_kinds(cluster, manifests)
    for manifest in sorted(manifests, key=_order):
        if manifest["kind"] in ("Job", "JobSet"):
            _apply_job(cluster, manifest, force_conflicts, timeout_seconds, report)
        else:
            cluster.apply(manifest, force_conflicts=force_conflicts)


def check_kinds(cluster: Cluster, manifests: Sequence[Manifest]) -> None:
    """Check that the cluster knows the kinds of the objects.

    Raises:
        ClusterRefused: it does not know one; names it.
    """
    for api_version, kind in sorted({(one["apiVersion"], one["kind"]) for one in manifests}):
        cluster.path(api_version, kind)


def condition(manifest: Manifest, kind: str) -> Manifest | None:
    """Return a condition of an object that is true, such as `Failed` of a Job; None otherwise."""
    found = (manifest.get("status") or {}).get("conditions") or ()
    return next((one for one in found if one["type"] == kind and one["status"] == "True"), None)


def wait_until_gone(cluster: Cluster, process: str, *, timeout_seconds: float) -> None:
    """Wait until the pods of a process have ended.

    Raises:
        Stalled: if some have not ended in time; names them.
    """
    deadline = time.monotonic() + timeout_seconds
    while pods := cluster.list("v1", "Pod", f"{cluster.ours},{NAME}={process}"):
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
    scalable = f"{cluster.ours},{COMPONENT} in (model-service,worker,gateway)"
    kinds = {one["metadata"]["labels"][NAME]: _DEPLOYMENT for one in cluster.list(*_DEPLOYMENT, scalable)}
    groups = cluster.list_if_known(*LEADER_WORKER_SET)
    kinds |= {one["metadata"]["labels"][NAME]: LEADER_WORKER_SET for one in groups}
    known = list(kinds)
    by_keda = {one["metadata"]["labels"][NAME]: one for one in cluster.list_if_known(*_KEDA)}
    by_cpu = {one["metadata"]["labels"][NAME]: one for one in cluster.list_if_known(*_HPA)}
    for name in wanted:
        if name not in known:
            allowed = (
                f"one of {', '.join(known)}" if known else "a process of a run; this namespace has no run"
            )
            raise ConfigError("scale", got=name, allowed=allowed)
        if name in by_keda:
            limits = by_keda[name]["spec"]
            raise ClusterRefused(
                f"{name} is scaled by KEDA, from {limits.get('minReplicaCount', 0)} to "
                f"{limits.get('maxReplicaCount', 100)}: change minReplicaCount and maxReplicaCount of its "
                "ScaledObject instead"
            )
        if name in by_cpu:
            limits = by_cpu[name]["spec"]
            raise ClusterRefused(
                f"{name} is scaled by a HorizontalPodAutoscaler, from {limits.get('minReplicas', 1)} to "
                f"{limits['maxReplicas']}: change its minReplicas and maxReplicas instead"
            )
    for name, replicas in wanted.items():
        cluster.scale(*kinds[name], cluster.named(name), replicas)


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

    Numbers of pods are not kept; `report` gets the command that sets them again.

    Raises:
        Stalled: if pods do not end.
    """
    secret = cluster.named(SECRET)
    if numbers := _stop(cluster, timeout_seconds, report):
        flags = ["-n", cluster.namespace] if cluster.namespace != "fairlead" else []
        flags += ["--run", cluster.run] if cluster.run else []
        again = " ".join(("fairlead k8s scale", *flags, *numbers))
        report(f"after the next up, for as many pods as before: {again}")
    kinds: _Kinds = (*WITHOUT_PODS, _CLAIM) if purge else WITHOUT_PODS
    for kind in kinds:
        for manifest in cluster.list_if_known(*kind, selector=f"{cluster.ours},{COMPONENT}!={BACKUP}"):
            cluster.delete(*kind, manifest["metadata"]["name"])
    if purge:
        cluster.delete("v1", "Secret", secret)
    kept = [one for one in cluster.list(*_CLAIM) if "deletionTimestamp" not in one["metadata"]]
    names = [f"{_CLAIM[1]} {one['metadata']['name']}" for one in kept]
    # By its name: the right to list Secrets is the right to read all of them.
    return names + ([f"Secret {secret}"] if cluster.get("v1", "Secret", secret) else [])


def _stop(cluster: Cluster, timeout_seconds: float, report: Callable[[str], None]) -> list[str]:
    """Delete what has pods, and return the numbers of pods that a person has set, as `scale` takes them."""
    scaled: dict[str, int] = {}
    by_autoscalers: set[str] = set()
    for kind, selector in STOP_ORDER:
        found = cluster.list_if_known(*kind, selector=cluster.ours + selector)
        for manifest in found:
            report(f"stopping {manifest['metadata']['name']}")
            cluster.delete(*kind, manifest["metadata"]["name"])
        replicas = {one["metadata"]["labels"][NAME]: one["spec"].get("replicas", 1) for one in found}
        if kind in (_KEDA, _HPA):
            by_autoscalers |= set(replicas)
            continue
        for name in replicas:
            wait_until_gone(cluster, name, timeout_seconds=timeout_seconds)
        if kind in (_DEPLOYMENT, LEADER_WORKER_SET):
            scaled |= {name: number for name, number in replicas.items() if number > 1}
    return [f"{name}={number}" for name, number in sorted(scaled.items()) if name not in by_autoscalers]


def _order(manifest: Manifest) -> int:
    kind = manifest["kind"]
    return _APPLIED_FIRST.index(kind) if kind in _APPLIED_FIRST else len(_APPLIED_FIRST)


def is_same_stage(before: Manifest, after: Manifest) -> bool:
    """Return whether two Jobs, or other objects with pods, run the same stage."""
    return stage(before) == stage(after)


def stage(owner: Manifest) -> str:
    """Return the stage that an object with pods runs; empty if it runs none."""
    arguments = [
        argument
        for template in pod_templates(owner)
        for argument in template["spec"]["containers"][0].get("args") or ()
    ]
    found = next((match[1] for one in arguments if (match := _STAGE.fullmatch(one))), "")
    return found.replace("_", "-")


def jobs_replaced_by(cluster: Cluster, manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield each Job that becomes a JobSet of the same name, or the reverse, with its kind."""
    for manifest in manifests:
        if manifest["kind"] in ("Job", "JobSet"):
            other = JOB_SET if manifest["kind"] == "Job" else _JOB
            for one in cluster.list_if_known(*other):
                if one["metadata"]["name"] == manifest["metadata"]["name"]:
                    yield one | {"kind": other[1]}


def _apply_job(
    cluster: Cluster,
    manifest: Manifest,
    force_conflicts: bool,
    timeout_seconds: float,
    report: Callable[[str], None],
) -> None:
    name, kind = manifest["metadata"]["name"], manifest["kind"]
    other = JOB_SET if kind == "Job" else _JOB
    if any(jobs_replaced_by(cluster, [manifest])):
        report(f"{name} was a {other[1]}: a {kind} replaces it and continues from the checkpoint")
        _delete_job(cluster, other, manifest, timeout_seconds)
    found = cluster.get(manifest["apiVersion"], kind, name)
    if found is not None and condition(found, "Failed"):
        report(f"{name} had failed: a new {kind} continues from the checkpoint")
    else:
        try:
            cluster.apply(manifest, force_conflicts=force_conflicts)
        except ImmutableObject:
            report(
                f"{name} has new settings: a new {kind} replaces it and continues from the checkpoint"
                if found is None or is_same_stage(found, manifest)
                else f"{name} gets the stage {stage(manifest)}: a new {kind} replaces that of {stage(found)}"
            )
        else:
            return
    _delete_job(cluster, (manifest["apiVersion"], kind), manifest, timeout_seconds)
    cluster.apply(manifest, force_conflicts=force_conflicts)


def _delete_job(cluster: Cluster, kind: tuple[str, str], job: Manifest, timeout_seconds: float) -> None:
    """Delete the Job or JobSet with the name of `job`, and wait for its pods to end."""
    name = job["metadata"]["name"]
    cluster.delete(*kind, name)
    wait_until_gone(cluster, job["metadata"]["labels"][NAME], timeout_seconds=timeout_seconds)
    if cluster.get(*kind, name) is not None:
        raise ClusterRefused(f"{kind[1]} {name} was deleted but still exists: a finalizer keeps it")
