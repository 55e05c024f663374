"""The strict schemas of Kubernetes' own kinds, each read once: `validate` reads 1.6 MB for each object."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

NEWEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
"""The newest version of Kubernetes whose schemas are installed."""


def mistake(manifest: dict[str, Any], version: str = "1.36") -> str:
    """Return what `kubernetes-validate --strict` refuses in an object; empty if it matches its schema.

    Raises:
        FileNotFoundError: if the version of Kubernetes does not have the kind.
    """
    return _mistake(json.dumps(manifest), version)


@cache
def _mistake(manifest: str, version: str) -> str:
    found = json.loads(manifest)
    validator = _validator(version, found["apiVersion"], found["kind"])
    error = jsonschema.exceptions.best_match(validator.iter_errors(found))
    return str(error.message) if error else ""


@cache
def _validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    # rbac.authorization.k8s.io/v1 is rbac-v1 in the name of the file.
    group, _, last = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], last) if part)
    schema = schema_contents(f"{_folder(version)}/{name}.json", version)
    return jsonschema.Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    shared = schema_contents(f"{_folder(version)}/_definitions.json", version)
    return Resource.from_contents(shared) @ Registry()


def _folder(version: str) -> str:
    return f"kubernetes-json-schema/v{version}.0-local-strict"
