"""Rendered manifests, and functions that tests use to inspect them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fairlead.config import load
from fairlead.k8s.manifests import Manifest, Target, checkout, render
from fairlead.k8s.settings import pod_templates

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")
MODEL_SERVICES = {"policy": 5001, "reward": 5002, "reference": 5003}
"""Port by service."""
OF_OVERLAYS = ("gpu", "namespace")
"""Components that overlays have themselves."""
INSTEAD_OF_OTHERS = (
    *("external-redis", "external-redis-ca", "hpa", "backup-feedback", "policy-nodes", "shared-services"),
)
"""Components that replace the base's queue, the Deployment of the policy or the component keda, need what
another replaces, or open a run to others.
"""
CHANGES = {
    "backup-feedback": ("feedback", "backup"),
    "external-redis-ca": ("external-redis",),
    "feedback-postgres": ("feedback",),
    "policy-nodes": ("vllm",),
}
"""Components that cannot be used without others, whose objects they change."""
QUEUE = "rediss://runs@queue.test:6380/2"
"""Address of the queue of variants with `external-redis`."""
COMPONENTS = tuple(sorted(folder.name for folder in (checkout() / "components").iterdir()))
VARIANTS = {
    "kind": ("kind", ()),
    "gpu": ("gpu", ()),
    "large": ("large", ()),
    "kind, keda": ("kind", ("keda",)),
    "kind, monitoring": ("kind", ("monitoring",)),
    "kind, gpu": ("kind", ("gpu",)),
    "kind, keys, tls": ("kind", ("keys", "tls")),
    "kind, weights": ("kind", ("weights-over-grpc",)),
    "kind, feedback": ("kind", ("feedback", "network-policies")),
    "kind, ways in": ("kind", ("gateway-ingress", "feedback", "hub-token", "pull-secret")),
    "gpu, ranks": ("gpu", ("network-policies",)),
    "gpu, ranks, jobset": ("gpu", ("jobset",)),
    "kind, external redis": (
        "kind",
        ("external-redis", "external-redis-ca", "keda", "network-policies", "jobset"),
    ),
    "large, policy nodes": ("large", ("policy-nodes", "network-policies", "keys", "tls")),
    "kind, feedback, backup": ("kind", ("feedback", "backup", "backup-feedback")),
    "kind, hpa, priority": ("kind", ("hpa", "priority", "model-image")),
    "kind, shared services": ("kind", ("network-policies", "shared-services")),
    "everything": (
        "gpu",
        tuple(name for name in COMPONENTS if name not in (*OF_OVERLAYS, *INSTEAD_OF_OTHERS)),
    ),
    # Every component on its own.
    **{
        f"kind + {name}": ("kind", (*CHANGES.get(name, ()), name))
        for name in COMPONENTS
        if name != "namespace"
    },
}
"""Overlay and components by name. A new component is among them."""


@cache
def rendered(variant: str, config: Path | None = None) -> tuple[Manifest, ...]:
    """Return every object of a variant as `fairlead k8s up` would apply it."""
    overlay, components = VARIANTS[variant]
    target = Target(
        overlay=overlay, components=components, namespace="fairlead", registry="registry.test/team"
    )
    divided = {"ranks.nodes": 2, "ranks.per_node": 8, "reward.tensor_parallel": 4}
    ranks = divided if "ranks" in variant else {}
    open_to_others = any("feedback" in name or "gateway" in name for name in components)
    origin = {"feedback.origin": "https://feedback.test", "gateway.origin": "https://gateway.test"}
    origin = origin if open_to_others else {}
    queue = {"queue.redis_url": QUEUE} if "external-redis" in components else {}
    nodes = {"policy.engine": "vllm", "policy.vllm.nnodes": 2, "policy.vllm.tensor_parallel_size": 16}
    nodes = nodes if "policy-nodes" in components else {}
    return tuple(render(load(config, overrides=ranks | origin | queue | nodes), target))


def of_kind(objects: Sequence[Manifest], *kinds: str) -> dict[str, Manifest]:
    """Return the objects of some kinds by name."""
    return {one["metadata"]["name"]: one for one in objects if one["kind"] in kinds}


def templates(objects: Sequence[Manifest]) -> dict[str, Manifest]:
    """Return the pod templates by process; those of the further nodes of a policy as `policy-node`."""
    kinds = ("Deployment", "StatefulSet", "Job", "JobSet", "CronJob", "LeaderWorkerSet")
    return {
        name if number == 0 else f"{name}-node": template
        for name, one in of_kind(objects, *kinds).items()
        for number, template in enumerate(pod_templates(one))
    }


def container(template: Manifest) -> dict[str, Any]:
    """Return the only container of a template."""
    (found,) = template["spec"]["containers"]
    return dict(found)


def data_of(objects: Sequence[Manifest], name: str) -> dict[str, str]:
    """Return the data of a ConfigMap, named with or without its hash."""
    (found,) = [
        one
        for key, one in of_kind(objects, "ConfigMap").items()
        if key.rpartition("-")[0] == name or key == name
    ]
    return dict(found["data"])


def probes(template: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and definition of each probe."""
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        if name in container(template):
            yield name, container(template)[name]
