"""What tests read instead of rendering and validating again is what that would return."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from fairlead.k8s.manifests import Manifest, checkout
from tests.kubernetes_schemas import mistake
from tests.rendered import needs_kubectl
from tests.shared_renders import sharing


def source(folder: Path, component: Path | None, settings: str) -> Path:
    folder.mkdir()
    base = os.path.relpath(checkout() / "overlays" / "kind", folder.resolve())
    components = [os.path.relpath(component, folder.resolve())] if component else []
    text = yaml.safe_dump({"resources": [base], "components": components})
    (folder / "kustomization.yaml").write_text(text)
    (folder / "run.toml").write_text(settings)
    return folder


@needs_kubectl
def test_only_equal_inputs_of_the_checkout_are_rendered_once(tmp_path: Path):
    asked: list[str] = []

    def kustomize(folder: Path) -> list[Manifest]:
        asked.append(folder.name)
        return [{"settings": (folder / "run.toml").read_text()}]

    (tmp_path / "kept").mkdir()
    (own := tmp_path / "own").mkdir()
    keys = checkout() / "components" / "keys"
    cases = {"a": (keys, "1"), "same": (keys, "1"), "b": (None, "1"), "c": (keys, "2"), "d": (own, "1")}
    folders = {name: source(tmp_path / name, *case) for name, case in cases.items()}
    for _ in range(2):
        # Another process of the session has another function, and the same folder.
        render = sharing(kustomize, tmp_path / "kept")
        for name, folder in folders.items():
            found = render(folder)
            assert found == [{"settings": cases[name][1]}]
            found.clear()
    assert asked == ["a", "b", "c", "d", "d"], "what is not in the checkout may change"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("replicas", 2),
        ("replicas", "two"),
        ("replica", 2),
        ("selector", "x"),
        ("template", {"spec": {"a": 1}}),
    ],
)
def test_mistake_is_that_of_the_validator(field: str, value: object):
    labels = {"app": "x"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "x", "image": "y"}]}}
    valid = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    assert mistake(valid) == ""
    changed = copy.deepcopy(valid)
    changed["spec"][field] = value
    try:
        kubernetes_validate.validate(changed, "1.36", strict=True)
        expected = ""
    except kubernetes_validate.ValidationError as error:
        expected = str(error.message)
    assert mistake(changed) == expected
    assert (expected == "") is (value == 2 and field == "replicas")
