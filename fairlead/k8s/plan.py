"""What `up` would change in the cluster: objects that it creates, changes or deletes, and pods that restart.

The API server itself computes the outcome of each apply (a dry run), with its defaults and the fields of
other owners. Changes nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.errors import ClusterRefused
from fairlead.k8s.changes import check_kinds, condition, is_same_stage, jobs_replaced_by
from fairlead.k8s.cluster import Cluster, ImmutableObject
from fairlead.k8s.labels import INSTANCE, PART_OF, WITH_PREFIX
from fairlead.k8s.manifests import Manifest
from fairlead.k8s.prune import superfluous
from fairlead.k8s.settings import pod_templates

_OF_THE_SERVER = ("managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink")
_OWNERS = ("Deployment", "StatefulSet", "Job", "JobSet", "LeaderWorkerSet")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` would do, each entry as `Kind name`."""

    created: list[str] = field(default_factory=list)
    """Objects that do not exist yet."""
    changed: dict[str, list[str]] = field(default_factory=dict)
    """The fields that change, by object."""
    restarted: dict[str, list[str]] = field(default_factory=dict)
    """The settings or fields because of which its pods are replaced, by process."""
    deleted: list[str] = field(default_factory=list)
    """Objects that earlier manifests had and these do not."""

    def lines(self) -> Iterator[str]:
        """Yield what happens to running pods, then to other objects."""
        for name, reasons in self.restarted.items():
            yield f"restarts {name}: {', '.join(reasons)}"
        yield from (f"deletes {name}" for name in self.deleted)
        for name, fields in self.changed.items():
            yield f"changes {name}: {', '.join(fields)}"
        yield from (f"creates {name}" for name in self.created)


def plan(
    cluster: Cluster,
    manifests: Sequence[Manifest],
    kept: Sequence[Manifest],
    *,
    force_conflicts: bool = False,
) -> Plan:
    """Return what `up` would do.

    Args:
        cluster: the connection.
        manifests: the objects that it would apply.
        kept: the objects that it would not delete, as in `prune`.
        force_conflicts: whether it would take over fields that other managers own.

    Raises:
        ClusterRefused: if the cluster would refuse an object.
    """
    check_kinds(cluster, manifests)
    found = Plan()
    data = {one["metadata"]["name"]: one.get("data") or {} for one in manifests if one["kind"] == "ConfigMap"}
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        before = cluster.get(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"])
        if before is None:
            found.created.append(name)
            continue
        _check_owner(cluster, before, name)
        try:
            after = cluster.apply(manifest, force_conflicts=force_conflicts, dry_run=True)
        except ImmutableObject:
            after = manifest
        replaced = manifest["kind"] in ("Job", "JobSet") and condition(before, "Failed") is not None
        if replaced or (manifest["kind"] in _OWNERS and _templates(before) != _templates(after)):
            reasons = ["it had failed"] if replaced else []
            if not is_same_stage(before, manifest):
                reasons.append("another stage")
            reasons += _reasons(cluster, before, after, data)
            found.restarted[manifest["metadata"]["name"]] = reasons or ["its pods change"]
        elif fields := list(_differences(_own(before), _own(after))):
            found.changed[name] = fields
    for other in jobs_replaced_by(cluster, manifests):
        found.restarted[other["metadata"]["name"]] = [f"it was a {other['kind']}"]
    found.deleted.extend(f"{one['kind']} {one['metadata']['name']}" for one in superfluous(cluster, kept))
    return found


def _check_owner(cluster: Cluster, before: Manifest, name: str) -> None:
    """Refuse to change an object of another run whose prefix and the names in the manifests give the same."""
    found = before["metadata"].get("labels") or {}
    has_prefix = found.get(PART_OF) == WITH_PREFIX
    owner = found.get(INSTANCE, "another owner") if has_prefix or cluster.run else ""
    if (has_prefix or cluster.run) and (owner, has_prefix) != (cluster.run, bool(cluster.run)):
        raise ClusterRefused(
            f"{name} in namespace {cluster.namespace} belongs to {owner}: choose another name for this run. "
            "Nothing was applied"
        )


def _own(manifest: Manifest) -> Manifest:
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in _OF_THE_SERVER}
    return {key: value for key, value in manifest.items() if key != "status"} | {"metadata": metadata}


def _templates(manifest: Manifest) -> list[Manifest]:
    return list(pod_templates(manifest))


def _reasons(
    cluster: Cluster, before: Manifest, after: Manifest, data: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """Yield the settings that differ in the ConfigMaps of the pods, then the other fields that do."""
    for old, new in zip(_templates(before), _templates(after), strict=False):
        names = dict(zip(_maps(old), _maps(new), strict=False))
        for was, now in names.items():
            if was != now and now in data:
                found = cluster.get("v1", "ConfigMap", was)
                yield from _differing_settings((found or {}).get("data") or {}, data[now])
        skipped = ("volumes", "envFrom")
        for path in _differences(old, new):
            if not any(part in skipped for part in path.split(".")):
                yield path.rpartition("spec.")[2]


def _maps(template: Manifest) -> list[str]:
    spec = template["spec"]
    found = [one["configMap"]["name"] for one in spec.get("volumes") or () if one.get("configMap")]
    for container in spec["containers"]:
        found += [
            one["configMapRef"]["name"] for one in container.get("envFrom") or () if "configMapRef" in one
        ]
    return found


def _differing_settings(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    old, new = (dict(_flat(_parsed(one))) for one in (before, after))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key} {_shown(old.get(key))} → {_shown(new.get(key))}"


def _parsed(data: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, text in data.items():
        found |= tomllib.loads(text) if name.endswith(".toml") else {name: text}
    return found


def _flat(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: object) -> str:
    text = "default" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _differences(before: object, after: object, path: str = "") -> Iterator[str]:
    """Yield the paths of the leaves that differ; lists are leaves unless they have the same length."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences(old, new, f"{path}.{index}")
    elif before != after:
        yield path
