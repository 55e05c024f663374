"""The Secrets of a run: `redis`, the queue's passwords, drawn once per namespace and never written anywhere
else, and those that a person makes (keys, certificates), which are asked for before anything is changed.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator, Sequence

from fairlead.errors import ClusterRefused
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.manifests import COMPONENT, NAME, PART_OF, Manifest

SECRET = "redis"
"""Name of the Secret."""
_KEDA_USER = "keda"
_KEYS = "FAIRLEAD_KEYS__FILE"


def ensure_secrets(cluster: Cluster, manifests: Sequence[Manifest]) -> bool:
    """Makes the Secret `redis` if the namespace has none, once every other one that is named is there.

    Returns:
        Whether it was made.

    Raises:
        ClusterRefused: for Secrets that are missing, or one without the key `password`.
    """
    keys_are_asked_for = any(_KEYS in (manifest.get("data") or {}) for manifest in manifests)
    named = {
        name
        for manifest in manifests
        for name, optional in _named(manifest)
        # Pods start without a key that is optional, and are then refused wherever keys are asked for.
        if name != SECRET and (keys_are_asked_for or not optional)
    }
    missing = [name for name in sorted(named) if cluster.get("v1", "Secret", name) is None]
    if missing:
        raise ClusterRefused(
            f"namespace {cluster.namespace} has no Secret {', '.join(missing)}: docs/security.md says how "
            "to make them; nothing was applied"
        )
    return _ensure_passwords(cluster)


def _named(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Secrets of the pods of an object, and whether they start without."""
    spec = (manifest["spec"].get("template") or {}).get("spec") or {} if "spec" in manifest else {}
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
    """Makes the Secret if the namespace has none; one that is there is left as it is.

    Returns:
        Whether it was made.

    Raises:
        ClusterRefused: for a Secret without the key `password`.
    """
    found = cluster.get("v1", "Secret", SECRET)
    if found is not None:
        if "password" not in (found.get("data") or {}):
            raise ClusterRefused(
                f"the Secret {SECRET} of namespace {cluster.namespace} has no key `password`: add it, or "
                "delete the Secret and a new one is made"
            )
        return False
    values = {
        "password": secrets.token_hex(32),
        "keda-username": _KEDA_USER,
        "keda-password": secrets.token_hex(32),
    }
    labels = {PART_OF: "fairlead", COMPONENT: "queue", NAME: "redis"}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "labels": labels},
            "type": "Opaque",
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
        }
    )
    return True
