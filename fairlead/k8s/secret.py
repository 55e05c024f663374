"""The Secrets of a run.

`redis` holds the passwords of the queue; it is created once for a run with random passwords, which are stored
nowhere else. The others (keys, certificates) are created by a person and must exist before anything is
applied.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator, Sequence

from fairlead.errors import ClusterRefused
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.labels import COMPONENT, INSTANCE, NAME, PART_OF, WITH_PREFIX, WITHOUT_PREFIX
from fairlead.k8s.manifests import Manifest, has_queue
from fairlead.k8s.settings import pod_templates

SECRET = "redis"
"""Name of the Secret, after the prefix of the run."""
_KEDA_USER = "keda"
_KEYS = "FAIRLEAD_KEYS__FILE"


def ensure_secrets(cluster: Cluster, manifests: Sequence[Manifest], whole: Sequence[Manifest]) -> bool:
    """Check that every Secret that the manifests name exists; create `redis` if the namespace has none.

    Args:
        cluster: the connection.
        manifests: the objects of the stage.
        whole: the objects of the whole run; one with an external queue needs no `redis`, and the Secret of
            a Certificate is created later.

    Returns:
        Whether `redis` was created.

    Raises:
        ClusterRefused: if Secrets are missing, or `redis` has no key `password`.
    """
    keys_are_required = any(_KEYS in (manifest.get("data") or {}) for manifest in manifests)
    named = {
        name
        for manifest in manifests
        for name, optional in _named(manifest)
        # Pods start without an optional Secret with their API key, and then every service refuses them.
        if name != cluster.named(SECRET) and (keys_are_required or not optional)
    }
    # cert-manager creates it after it is applied; the pods wait for it.
    named -= {one["spec"]["secretName"] for one in whole if one["kind"] == "Certificate"}
    missing = [name for name in sorted(named) if cluster.get("v1", "Secret", name) is None]
    if missing:
        raise ClusterRefused(
            f"namespace {cluster.namespace} has no Secret {', '.join(missing)}: create it as described in "
            "docs/security.md, or in docs/kubernetes.md for fairlead-hub, fairlead-redis and "
            "fairlead-registry. Nothing was applied"
        )
    return has_queue(whole) and _ensure_passwords(cluster)


def _named(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Yield the name of each Secret of an object's pods, and whether it is optional."""
    for source in manifest.get("imagePullSecrets", ()):
        yield source["name"], False
    for template in pod_templates(manifest):
        yield from _named_by_pod(template["spec"])


def _named_by_pod(spec: Manifest) -> Iterator[tuple[str, bool]]:
    for volume in spec.get("volumes", ()):
        if "secret" in volume:
            yield volume["secret"]["secretName"], bool(volume["secret"].get("optional"))
    for container in spec.get("containers", ()):
        for source in container.get("envFrom", ()):
            if "secretRef" in source:
                yield source["secretRef"]["name"], bool(source["secretRef"].get("optional"))
        for variable in container.get("env", ()):
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if reference:
                yield reference["name"], bool(reference.get("optional"))


def _ensure_passwords(cluster: Cluster) -> bool:
    """Create the Secret `redis` if the namespace has none; an existing one is not changed.

    Returns:
        Whether it was created.

    Raises:
        ClusterRefused: if the existing Secret has no key `password`.
    """
    name = cluster.named(SECRET)
    found = cluster.get("v1", "Secret", name)
    if found is not None:
        if "password" not in (found.get("data") or {}):
            raise ClusterRefused(
                f"the Secret {name} of namespace {cluster.namespace} has no key `password`: add it, or "
                "delete the Secret so that a new one is created"
            )
        return False
    values = {
        "password": secrets.token_hex(32),
        "keda-username": _KEDA_USER,
        "keda-password": secrets.token_hex(32),
    }
    labels = {PART_OF: WITHOUT_PREFIX, COMPONENT: "queue", NAME: "redis"}
    if cluster.run:
        labels |= {PART_OF: WITH_PREFIX, INSTANCE: cluster.run}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": labels},
            "type": "Opaque",
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
        }
    )
    return True
