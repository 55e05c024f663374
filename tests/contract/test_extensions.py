"""Objects of extensions of Kubernetes: those of components, and those that the documents show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from fairlead.k8s.manifests import Manifest
from tests.extension_schemas import SCHEMAS
from tests.published_schemas import RELEASES, Unreachable, published, unknown_fields
from tests.rendered import VARIANTS, needs_kubectl, rendered

DOCS = Path(__file__).parents[2] / "docs"
YAML = re.compile(r"^ *```yaml\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def of_extensions(objects: tuple[Manifest, ...] | list[Manifest]) -> Iterator[Manifest]:
    """Yield the objects of the API groups that have a published schema."""
    for one in objects:
        if one["apiVersion"].partition("/")[0] in RELEASES:
            yield one


def documented() -> list[Manifest]:
    """Return the whole objects in blocks of YAML of the documents."""
    found: list[Manifest] = []
    for page in sorted(DOCS.glob("*.md")):
        for block in YAML.findall(page.read_text()):
            found += [one for one in yaml.safe_load_all(block) if isinstance(one, dict) and "kind" in one]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_kubectl
def test_objects_match_the_published_schemas():
    """Every object of every variant and of the documents, unknown fields refused."""
    seen: dict[tuple[str, str], int] = {}
    variants = [one for name in VARIANTS for one in of_extensions(rendered(name))]
    for one in (*variants, *of_extensions(documented())):
        kind = (one["apiVersion"], one["kind"])
        try:
            validator = jsonschema.Draft202012Validator(published(*kind))
        except Unreachable as error:
            pytest.skip(f"set KUBERNETES_CRDS to a folder with the definitions: {error}")
        assert not [f"{error.json_path}: {error.message}" for error in validator.iter_errors(one)]
        seen[kind] = seen.get(kind, 0) + 1
    assert {kind for _, kind in seen} >= set(SCHEMAS)
    for api_version, kind in seen:
        if kind in SCHEMAS:
            known = published(api_version, kind)["properties"]["spec"]
            assert not list(unknown_fields(SCHEMAS[kind], known)), kind
    # A misspelt field is refused, or this test shows nothing.
    (scaled,) = [one for one in of_extensions(rendered("kind, keda")) if one["kind"] == "ScaledObject"]
    misspelt = scaled | {"spec": scaled["spec"] | {"pollinginterval": 5}}
    with pytest.raises(jsonschema.ValidationError, match="pollinginterval"):
        jsonschema.validate(misspelt, published(scaled["apiVersion"], scaled["kind"]))
