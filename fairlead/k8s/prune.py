"""Objects that an earlier `up` applied and that the manifests no longer have, such as those of a component.

Only objects that `fairlead k8s` itself has applied are deleted, never volumes or Secrets.
"""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.k8s.changes import STOP_ORDER, WITHOUT_PODS
from fairlead.k8s.cluster import FIELD_MANAGER, Cluster, ClusterForbidden
from fairlead.k8s.labels import COMPONENT, FETCH
from fairlead.k8s.manifests import Manifest
from fairlead.k8s.settings import pod_templates

_JOBS = ("Job", "JobSet")
_KINDS = tuple(dict.fromkeys([*(kind for kind, _ in STOP_ORDER), *WITHOUT_PODS]))
_CONFIG_MAP = ("v1", "ConfigMap")


def superfluous(cluster: Cluster, kept: Sequence[Manifest]) -> list[Manifest]:
    """Return the objects to delete, without ConfigMaps.

    Args:
        cluster: the connection.
        kept: the objects of the whole run, also those that its present stage does not need.
    """
    names = {(one["kind"], one["metadata"]["name"]) for one in kept}
    # A Job that becomes a JobSet, or the reverse, is replaced when the other is applied.
    names |= {(other, name) for kind, name in names if kind in _JOBS for other in _JOBS}
    found: list[Manifest] = []
    for version, kind in _KINDS:
        if (version, kind) != _CONFIG_MAP:
            found += [
                one
                for one in _applied(cluster, version, kind)
                if (kind, one["metadata"]["name"]) not in names
            ]
    return found


def delete_superfluous(cluster: Cluster, kept: Sequence[Manifest]) -> list[str]:
    """Delete these objects; return them as `Kind name`."""
    found = superfluous(cluster, kept)
    for one in found:
        cluster.delete(one["apiVersion"], one["kind"], one["metadata"]["name"])
    return [f"{one['kind']} {one['metadata']['name']}" for one in found]


def delete_old_settings(cluster: Cluster, kept: Sequence[Manifest]) -> list[str]:
    """Delete ConfigMaps of earlier settings that no pod uses; return their names."""
    used = {one["metadata"]["name"] for one in kept if one["kind"] == "ConfigMap"}
    for pod in cluster.list("v1", "Pod"):
        used |= _maps({"template": pod})
    for version, kind in (("apps/v1", "Deployment"), ("apps/v1", "StatefulSet"), ("batch/v1", "Job")):
        for owner in cluster.list(version, kind):
            for template in pod_templates(owner):
                used |= _maps({"template": template})
    names = [
        one["metadata"]["name"]
        for one in _applied(cluster, *_CONFIG_MAP)
        if one["metadata"]["name"] not in used
    ]
    for name in names:
        cluster.delete(*_CONFIG_MAP, name)
    return names


def _applied(cluster: Cluster, version: str, kind: str) -> list[Manifest]:
    try:
        found = cluster.list_if_known(version, kind)
    except ClusterForbidden:  # Then it cannot have applied any.
        return []
    return [
        one | {"apiVersion": version, "kind": kind}
        for one in found
        if "deletionTimestamp" not in one["metadata"]
        and (one["metadata"].get("labels") or {}).get(COMPONENT) != FETCH
        and any(
            owner.get("manager") == FIELD_MANAGER and owner.get("operation") == "Apply"
            for owner in one["metadata"].get("managedFields") or ()
        )
    ]


def _maps(owner: Manifest) -> set[str]:
    spec = owner["template"]["spec"]
    found = {one["configMap"]["name"] for one in spec.get("volumes") or () if one.get("configMap")}
    for container in spec["containers"]:
        found |= {
            one["configMapRef"]["name"] for one in container.get("envFrom") or () if "configMapRef" in one
        }
    return found
