"""Schemas that extensions of Kubernetes publish for their kinds (CustomResourceDefinitions).

They are megabytes, so they are not copied into this repository: a folder has them, or they are fetched from
the releases below. All of these projects are Apache-2.0.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

RELEASES = {
    "cert-manager.io": ("cert-manager/cert-manager", "v1.21.1", "deploy/crds"),
    "gateway.networking.k8s.io": ("kubernetes-sigs/gateway-api", "v1.6.1", "config/crd/standard"),
    "jobset.x-k8s.io": ("kubernetes-sigs/jobset", "v0.12.0", "config/components/crd/bases"),
    "keda.sh": ("kedacore/keda", "v2.20.2", "config/crd/bases"),
    "kueue.x-k8s.io": ("kubernetes-sigs/kueue", "v0.19.2", "config/components/crd/bases"),
    "leaderworkerset.x-k8s.io": ("kubernetes-sigs/lws", "v0.10.0", "config/crd/bases"),
    "monitoring.coreos.com": (
        *("prometheus-operator/prometheus-operator", "v0.93.0"),
        "example/prometheus-operator-crd",
    ),
}
"""Repository, release and folder of the definitions, by API group."""

_SHARED = Path(__file__).parents[2] / "shared" / "data" / "crds"
_FETCH_SECONDS = 60.0


class Unreachable(Exception):
    """A definition is in no folder, and cannot be fetched."""


@cache
def published(api_version: str, kind: str) -> Schema:
    """Return the published schema of a kind, which refuses unknown fields.

    The folder KUBERNETES_CRDS or ../shared/data/crds has it as a file of its release; otherwise it is
    fetched.

    Raises:
        Unreachable: if there is no such file, and the release cannot be fetched.
    """
    group, _, version = api_version.partition("/")
    spec = yaml.load(_text(group, kind), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
    assert (spec["group"], spec["names"]["kind"]) == (group, kind)
    (found,) = [one for one in spec["versions"] if one["name"] == version and one["served"]]
    schema = _strict(found["schema"]["openAPIV3Schema"])
    # The API server itself knows the metadata of every object.
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _text(group: str, kind: str) -> str:
    repository, release, folder = RELEASES[group]
    name = f"{group}_{kind.lower()}s.yaml"
    for place in (os.environ.get("KUBERNETES_CRDS"), _SHARED):
        if place and (path := Path(place) / name).is_file():
            return path.read_text(encoding="utf-8")
    address = f"https://github.com/{repository}/raw/{release}/{folder}/{name}"
    try:
        with urllib.request.urlopen(address, timeout=_FETCH_SECONDS) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, TimeoutError) as error:
        raise Unreachable(f"{address}: {error}") from error


def _strict(schema: Schema) -> Schema:
    """Return a structural schema of the API server as a JSON schema that refuses unknown fields.

    Rules in CEL are left out.
    """
    left_out = ("description", "default", "nullable", "format")
    found = {key: one for key, one in schema.items() if key not in left_out and not key.startswith("x-")}
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    if "properties" in schema:
        found["properties"] = {key: _strict(one) for key, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        found["items"] = _strict(schema["items"])
    return found


def unknown_fields(by_hand: Schema, known: Schema, path: str = "") -> Iterator[str]:
    """Yield the paths of fields that a schema by hand allows and a published one does not know."""
    for name, inner in by_hand.get("properties", {}).items():
        if name in known.get("properties", {}):
            yield from unknown_fields(inner, known["properties"][name], f"{path}.{name}")
        elif known.get("additionalProperties") is False:
            yield f"{path}.{name}"
    items = by_hand.get("items", {})
    for one in items.get("oneOf", [items]):
        if one:
            yield from unknown_fields(one, known.get("items", {}), f"{path}[]")
