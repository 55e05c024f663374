"""Objects of extensions of Kubernetes in the documents, and what published schemas leave open."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fairlead.k8s.manifests import Manifest
from tests.published_schemas import KINDS, faults, is_of_extension
from tests.rendered import VARIANTS, needs_kubectl, of_kind, rendered

DOCS = Path(__file__).parents[2] / "docs"
YAML = re.compile(r"^ *```yaml\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def documented() -> list[Manifest]:
    """Return the whole objects of extensions in blocks of YAML of the documents."""
    found: list[Manifest] = []
    for page in sorted(DOCS.glob("*.md")):
        for block in YAML.findall(page.read_text()):
            found += [one for one in yaml.safe_load_all(block) if isinstance(one, dict) and "kind" in one]
    return [one for one in found if is_of_extension(one)]


def kind(manifest: Manifest) -> str:
    """Return group and plural, as in KINDS."""
    return f"{manifest['apiVersion'].partition('/')[0]}/{manifest['kind'].lower()}s"


def test_documented_objects_match_the_published_schemas():
    objects = documented()
    assert objects
    for one in objects:
        assert faults(one) == []


@pytest.mark.slow  # renders every variant, which test_manifests.py does too
@needs_kubectl
def test_every_published_schema_is_used():
    rendered_objects = [one for name in VARIANTS for one in rendered(name) if is_of_extension(one)]
    assert {kind(one) for one in (*rendered_objects, *documented())} == set(KINDS)


@needs_kubectl
def test_misspelt_field_is_refused():
    (scaled,) = of_kind(rendered("kind, keda"), "ScaledObject").values()
    misspelt = scaled | {"spec": scaled["spec"] | {"pollinginterval": 5}}
    (fault,) = faults(misspelt)
    assert fault.startswith("$.spec:")
    assert "pollinginterval" in fault


@needs_kubectl
@pytest.mark.parametrize("variant", ["kind, keda", "kind, external redis"])
def test_settings_of_the_scaler_are_known(variant):
    """To the schema, they are any texts: https://keda.sh/docs/latest/scalers/redis-streams/."""
    known = {
        *("address", "stream", "consumerGroup", "lagCount", "pendingEntriesCount"),
        *("enableTLS", "databaseIndex"),
    }
    for scaled in of_kind(rendered(variant), "ScaledObject").values():
        for trigger in scaled["spec"]["triggers"]:
            assert trigger["type"] == "redis-streams"
            assert set(trigger["metadata"]) <= known
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
