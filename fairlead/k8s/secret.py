"""The Secret `redis`: the queue's passwords, drawn once per namespace and never written anywhere else."""

from __future__ import annotations

import base64
import secrets

from fairlead.errors import ClusterRefused
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.manifests import COMPONENT, NAME, PART_OF

SECRET = "redis"
"""Name of the Secret."""
_KEDA_USER = "keda"


def ensure_passwords(cluster: Cluster) -> bool:
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
