"""Schemas that extensions of Kubernetes publish for their kinds (CustomResourceDefinitions).

`published_schemas.json.gz` has those of the releases below without their texts, 30 KB instead of 3 MB. After
a change of a release or a new kind, `python -m tests.published_schemas` fetches all and writes the file
again, or reads them from a folder: `python -m tests.published_schemas FOLDER`. All of these projects
are Apache-2.0.
"""

from __future__ import annotations

import gzip
import json
import sys
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
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

KINDS = (
    *("cert-manager.io/certificates", "cert-manager.io/issuers"),
    *("gateway.networking.k8s.io/gateways", "gateway.networking.k8s.io/httproutes"),
    *("jobset.x-k8s.io/jobsets", "keda.sh/scaledobjects", "keda.sh/triggerauthentications"),
    *("kueue.x-k8s.io/clusterqueues", "kueue.x-k8s.io/localqueues", "kueue.x-k8s.io/resourceflavors"),
    *("leaderworkerset.x-k8s.io/leaderworkersets", "monitoring.coreos.com/podmonitors"),
    "monitoring.coreos.com/prometheusrules",
)
"""Group and plural of every kind in the file."""

_FILE = Path(__file__).with_name("published_schemas.json.gz")
_FETCH_SECONDS = 60.0


@cache
def _specs() -> dict[str, Schema]:
    found: dict[str, Schema] = json.loads(gzip.decompress(_FILE.read_bytes()))
    return found


def is_of_extension(manifest: dict[str, Any]) -> bool:
    """Return whether an object is of an API group in RELEASES."""
    return manifest["apiVersion"].partition("/")[0] in RELEASES


def faults(manifest: dict[str, Any]) -> list[str]:
    """Return what the published schema of an object of an extension refuses, unknown fields too.

    Raises:
        KeyError: if the file does not have its kind.
    """
    validator = _validator(manifest["apiVersion"], manifest["kind"])
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@cache
def _validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    group, _, version = api_version.partition("/")
    spec = _specs()[f"{group}/{kind.lower()}s"]
    assert (spec["group"], spec["names"]["kind"]) == (group, kind)
    (found,) = [one for one in spec["versions"] if one["name"] == version and one["served"]]
    schema = _strict(found["schema"]["openAPIV3Schema"])
    # The API server itself knows the metadata of every object.
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _definition(kind: str, folder: Path | None) -> Schema:
    """Return the spec of a definition from a folder, or from its release."""
    group, _, plural = kind.partition("/")
    name = f"{group}_{plural}.yaml"
    if folder is not None:
        text = (folder / name).read_text(encoding="utf-8")
    else:
        repository, release, place = RELEASES[group]
        address = f"https://github.com/{repository}/raw/{release}/{place}/{name}"
        with urllib.request.urlopen(address, timeout=_FETCH_SECONDS) as answer:
            text = answer.read().decode()
    spec: Schema = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
    return spec


def _without_texts(value: Any) -> Any:
    """Return a schema without descriptions; a property of that name is kept."""
    if isinstance(value, dict):
        return {
            key: _without_texts(one)
            for key, one in value.items()
            if key != "description" or isinstance(one, dict)
        }
    return [_without_texts(one) for one in value] if isinstance(value, list) else value


def _write(folder: Path | None) -> None:
    specs = {kind: _without_texts(_definition(kind, folder)) for kind in KINDS}
    text = json.dumps(specs, separators=(",", ":"), sort_keys=True)
    _FILE.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def _strict(schema: Schema) -> Schema:
    """Return a structural schema of the API server as a JSON schema that refuses unknown fields.

    Rules in CEL are left out.
    """
    left_out = ("description", "default", "nullable", "format")
    found = {key: one for key, one in schema.items() if key not in left_out and not key.startswith("x-")}
    if "(?i)" in found.get("pattern", ""):  # Go takes it anywhere, Python at the start only
        found["pattern"] = "(?i)" + found["pattern"].replace("(?i)", "")
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


if __name__ == "__main__":
    _write(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
