"""What a cluster lacks for a run: rights, a storage class, GPUs, extensions. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import yaml

from fairlead.k8s.cluster import Cluster, ClusterForbidden, ObjectNotFound
from fairlead.k8s.manifests import GPU, Manifest, checkout

_EXTENSIONS: Mapping[str, tuple[str, str]] = {
    "KEDA": ("/apis/keda.sh/v1alpha1", "the component keda"),
    "metrics-server": ("/apis/metrics.k8s.io/v1beta1", "the component hpa"),
    "JobSet": ("/apis/jobset.x-k8s.io/v1alpha2", "the component jobset"),
    "LeaderWorkerSet": ("/apis/leaderworkerset.x-k8s.io/v1", "the component policy-nodes"),
    "Prometheus operator": ("/apis/monitoring.coreos.com/v1", "the component monitoring"),
    "cert-manager": ("/apis/cert-manager.io/v1", "the components tls-certificate and ingress-certificate"),
    "Gateway API": ("/apis/gateway.networking.k8s.io/v1", "the component gateway-api"),
    "Kueue": ("/apis/kueue.x-k8s.io", "the component kueue"),
}
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_UNSET = ("limits.cpu", "limits.ephemeral-storage", "requests.ephemeral-storage")
"""What a ResourceQuota may demand of each container, and the manifests do not set."""
_OPTIONAL_GROUPS = (
    *("cert-manager.io", "gateway.networking.k8s.io", "jobset.x-k8s.io", "keda.sh"),
    *("leaderworkerset.x-k8s.io", "monitoring.coreos.com"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    state: Literal["ok", "missing", "optional", "unknown"]
    """`missing` is what every run needs; `optional` is missing, too, but only some runs need it."""
    what: str
    """What was looked at."""
    detail: str
    """What was found, and what to do if it is missing."""


def examine(cluster: Cluster) -> Iterator[Finding]:
    """Yield what was found, the most important first."""
    version = cluster.read("/version", "read its version")
    yield Finding("ok", "cluster", f"Kubernetes {version.get('gitVersion', '?')} at {cluster.host}")
    yield _namespace(cluster)
    yield from _rights(cluster)
    yield _storage(cluster)
    yield _gpus(cluster)
    yield _quota(cluster)
    for name, (path, purpose) in _EXTENSIONS.items():
        try:
            cluster.read(path, f"discover {name}")
            yield Finding("ok", name, f"installed, for {purpose}")
        except ObjectNotFound:
            yield Finding("optional", name, f"not installed; only needed for {purpose}")
    yield Finding(
        "unknown",
        "network policies",
        "the API does not show whether a network plugin enforces those of the component network-policies",
    )


def _namespace(cluster: Cluster) -> Finding:
    path = f"/api/v1/namespaces/{cluster.namespace}"
    try:
        found = cluster.read(path, f"read namespace {cluster.namespace}")
    except ClusterForbidden:
        return Finding("unknown", "namespace", f"{cluster.namespace}: not allowed to read it")
    except ObjectNotFound:
        return Finding("missing", "namespace", f"{cluster.namespace}: create it with `up --create-namespace`")
    labels = found["metadata"].get("labels") or {}
    enforced = labels.get("pod-security.kubernetes.io/enforce", "nothing")
    return Finding("ok", "namespace", f"{cluster.namespace}; Pod Security enforces {enforced}")


def _rights(cluster: Cluster) -> Iterator[Finding]:
    """Yield the rights of the operator's role that the account lacks, and of that for several runs."""
    folder = checkout() / "components" / "operator-role"
    files = ("role.yaml", "runs.yaml") if cluster.run else ("role.yaml",)
    texts = [(folder / name).read_text(encoding="utf-8") for name in files]
    missing: dict[str, list[str]] = {}
    for rule in [rule for text in texts for rule in yaml.safe_load(text)["rules"]]:
        for resource, verb in _pairs(rule):
            group = rule["apiGroups"][0]
            names = rule.get("resourceNames", [""])
            if group not in _OPTIONAL_GROUPS and not cluster.may(verb, group, resource, names[0]):
                missing.setdefault(f"{resource}.{group}" if group else resource, []).append(verb)
    if not missing:
        roles = "roles fairlead-operator and fairlead-runs" if cluster.run else "role fairlead-operator"
        yield Finding("ok", "rights", f"those of the {roles}")
    for resource, verbs in missing.items():
        yield Finding(
            "missing", "rights", f"{', '.join(verbs)} of {resource}: see k8s/components/operator-role"
        )


def _pairs(rule: Manifest) -> Iterator[tuple[str, str]]:
    for resource in rule["resources"]:
        for verb in rule["verbs"]:
            yield resource, verb


def _storage(cluster: Cluster) -> Finding:
    try:
        answer = cluster.read("/apis/storage.k8s.io/v1/storageclasses", "list StorageClasses")
    except ClusterForbidden:
        return Finding("unknown", "storage class", "not allowed to list storage classes")
    classes = answer.get("items") or ()
    names = [one["metadata"]["name"] for one in classes]
    default = next(
        (one for one in classes if (one["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"),
        None,
    )
    if default is None:
        known = f"one of {', '.join(names)}" if names else "one"
        return Finding("missing", "storage class", f"none is the default: set storageClassName to {known}")
    return Finding(
        "ok",
        "storage class",
        f"{default['metadata']['name']} ({default.get('provisioner', '?')}); the overlays gpu and large need "
        "one whose volumes several nodes can write",
    )


def _gpus(cluster: Cluster) -> Finding:
    try:
        nodes = cluster.read("/api/v1/nodes", "list nodes").get("items") or ()
    except ClusterForbidden:
        return Finding("unknown", "GPUs", "not allowed to list nodes")
    counts = [int(((one.get("status") or {}).get("allocatable") or {}).get(GPU, 0)) for one in nodes]
    if not any(counts):
        detail = f"none on {len(counts)} nodes, or no device plugin; the overlays gpu and large need them"
        return Finding("optional", "GPUs", detail)
    return Finding("ok", "GPUs", f"{sum(counts)} on {sum(1 for one in counts if one)} of {len(counts)} nodes")


def _quota(cluster: Cluster) -> Finding:
    """Return whether the namespace has a quota that refuses pods for what they do not set."""
    try:
        quotas = cluster.list("v1", "ResourceQuota", "")
        ranges = cluster.list("v1", "LimitRange", "")
    except ClusterForbidden:
        return Finding("unknown", "quotas", "not allowed to list ResourceQuotas and LimitRanges")
    defaults = {
        resource
        for one in ranges
        for limit in one["spec"]["limits"]
        if limit["type"] == "Container"
        for resource in limit.get("default") or ()
    }
    for one in quotas:
        hard = (one.get("spec") or {}).get("hard") or {}
        demanded = [name for name in _UNSET if name in hard and name.partition(".")[2] not in defaults]
        if demanded:
            detail = (
                f"{one['metadata']['name']} demands {', '.join(demanded)}, which pods do not set: create a "
                "LimitRange with a default (docs/kubernetes.md, Quotas)"
            )
            return Finding("missing", "quotas", detail)
    names = ", ".join(one["metadata"]["name"] for one in quotas)
    return Finding("ok", "quotas", f"pods set what {names} demands" if names else "none in the namespace")
