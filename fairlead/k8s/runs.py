"""The runs of a namespace: their states and progress, and the reservation of a name for a new one.

A run with a prefix is found by the label of its objects; a run without one is shown, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fairlead.errors import ClusterRefused
from fairlead.k8s import labels
from fairlead.k8s.changes import stage
from fairlead.k8s.cluster import Cluster, ObjectExists
from fairlead.k8s.follow import container_of
from fairlead.k8s.labels import INSTANCE, NAME, PART_OF, WITH_PREFIX
from fairlead.k8s.manifests import SHARED, VOLUME, Manifest
from fairlead.k8s.processes import ProcessState, observe, states
from fairlead.update_line import last_update

_CLAIM = ("v1", "PersistentVolumeClaim")
_TRAINER = "trainer"
_LOG_LINES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run in a namespace."""

    name: str
    """Its name."""
    has_prefix: bool
    """Whether the names of its objects begin with it."""
    state: str
    """running, waiting, done, failed, no trainer (only the pod `files`), or stopped (only volumes)."""
    stage: str = ""
    """Stage of the trainer."""
    update: tuple[int, int] | None = None
    """Last update that the trainer logged, and how many there will be."""
    created: datetime | None = None
    """When its oldest object was created."""
    reason: str = ""
    """Why it waits or has failed."""


def names(cluster: Cluster) -> list[str]:
    """Return the names of the runs with a prefix, also of those whose volumes are all that is left."""
    everything = _owners_and_claims(cluster, labels.of_runs())
    return sorted({one["metadata"]["labels"][INSTANCE] for one in everything})


def runs(cluster: Cluster) -> Iterator[Run]:
    """Yield every run of the namespace by name."""
    for selector in (labels.of_runs(), labels.selector("")):
        owners, pods = observe(cluster, selector)
        claims = cluster.list(*_CLAIM, selector)
        for name in sorted({_instance(one) for one in (*owners, *claims)}):
            yield _run(
                cluster,
                *([one for one in several if _instance(one) == name] for several in (owners, pods, claims)),
            )


def reserve(cluster: Cluster, manifests: Sequence[Manifest]) -> None:
    """Create the ServiceAccount of a new run, which only one of several callers can do.

    Raises:
        ClusterRefused: the name is taken.
    """
    (account,) = [one for one in manifests if one["kind"] == "ServiceAccount"]
    try:
        cluster.create(account)
    except ObjectExists:
        raise ClusterRefused(
            f"namespace {cluster.namespace} has a run {cluster.run} already: choose another name, change it "
            f"with `fairlead k8s up --run {cluster.run}`, or delete it with `fairlead k8s run delete "
            f"{cluster.run}`"
        ) from None


def release(cluster: Cluster) -> None:
    """Give up the name of a run that could not be started; keep it if the run has processes already."""
    owners, _ = observe(cluster, cluster.ours)
    if not owners:
        for account in cluster.list("v1", "ServiceAccount"):
            cluster.delete("v1", "ServiceAccount", account["metadata"]["name"])


def left_by_an_earlier_run(cluster: Cluster) -> str:
    """Return the volume that an earlier run of this name has left, which a new one would continue."""
    name = cluster.named(VOLUME)
    return name if cluster.get(*_CLAIM, name) is not None else ""


def check_exists(cluster: Cluster) -> None:
    """Check that the run has objects or a volume.

    Raises:
        ClusterRefused: it has none; names the runs that exist.
    """
    known = names(cluster)
    if cluster.run not in known:
        others = f"; its runs: {', '.join(known)}" if known else ""
        raise ClusterRefused(f"namespace {cluster.namespace} has no run {cluster.run}{others}")


def users_of(cluster: Cluster) -> dict[str, list[str]]:
    """Return the runs of the namespace that use services of this one, and which."""
    found: dict[str, list[str]] = {}
    for one in cluster.list("v1", "ConfigMap", labels.of_runs()):
        user = _instance(one)
        for service in SHARED:
            address = (one.get("data") or {}).get(f"FAIRLEAD_{service.upper()}__ADDRESSES", "")
            host = re.escape(cluster.named(service))
            if user != cluster.run and re.search(rf"[/\"]{host}[.:]", address):
                found.setdefault(user, []).append(service)
    return found


def _run(cluster: Cluster, owners: list[Manifest], pods: list[Manifest], claims: list[Manifest]) -> Run:
    everything = [*owners, *claims]
    created = [one["metadata"].get("creationTimestamp") for one in owners or claims]
    has_prefix = everything[0]["metadata"]["labels"][PART_OF] == WITH_PREFIX
    name = _instance(everything[0])
    trainer = next((one for one in owners if _process(one) == _TRAINER), None)
    found = states(replace(cluster, run=name if has_prefix else ""), owners, pods)
    state, reason = _state(found, is_stopped=not owners)
    return Run(
        name=name,
        has_prefix=has_prefix,
        state=state,
        reason=reason,
        stage=stage(trainer) if trainer is not None else "",
        update=_update(cluster, pods),
        created=min((datetime.fromisoformat(one).astimezone(UTC) for one in created if one), default=None),
    )


def _state(found: Sequence[ProcessState], *, is_stopped: bool) -> tuple[str, str]:
    """Return the state of a run from those of its processes, and why it is not another."""
    if is_stopped:
        return "stopped", ""
    trainer = next((one for one in found if one.name == _TRAINER), None)
    if trainer is not None and trainer.failed:
        end = trainer.end
        return "failed", f"exit code {end.code}: {end.message}" if end is not None else trainer.failed
    if trainer is not None and trainer.done:
        return "done", ""
    waiting = next((one for one in found if not one.is_settled), None)
    if waiting is not None:
        counted = f"{waiting.name} {waiting.ready}/{waiting.wanted}"
        return "waiting", f"{counted} ({waiting.doing})" if waiting.doing else counted
    return ("running" if trainer is not None else "no trainer"), ""


def _update(cluster: Cluster, pods: Sequence[Manifest]) -> tuple[int, int] | None:
    """Return the last update in the log of the newest pod of the trainer that has one."""
    for pod in [one for one in pods if _process(one) == _TRAINER]:
        try:
            text = cluster.log(
                pod["metadata"]["name"],
                lines=_LOG_LINES,
                previous=False,
                container=container_of(pod, _TRAINER),
            )
        except ClusterRefused:  # A container that has not started, or an account that may not read logs.
            continue
        if (update := last_update(text)) is not None:
            return update
    return None


def _owners_and_claims(cluster: Cluster, selector: str) -> list[Manifest]:
    owners, _ = observe(cluster, selector)
    return [*owners, *cluster.list(*_CLAIM, selector)]


def _instance(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(INSTANCE, ""))


def _process(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(NAME, ""))
