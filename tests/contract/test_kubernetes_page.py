"""docs/kubernetes.md and docs/gitops.md: commands parse, and the files and objects that they name exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fairlead.cli.main import app
from fairlead.k8s.manifests import Manifest, checkout, kustomize
from tests.rendered import needs_kubectl, of_kind, rendered

ROOT = checkout().parent
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
GITOPS = (ROOT / "docs" / "gitops.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE + GITOPS, re.DOTALL)
LINES = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
COMMANDS = [part.strip() for line in LINES for part in re.split(r" [|>] ", line)]
INLINE = [part.replace(" …", "") for part in re.findall(r"`([^`\n]+)`", PAGE + GITOPS)]
OURS = sorted({line for line in COMMANDS + INLINE if line.startswith("fairlead ") and len(line.split()) > 3})
VERBS = sorted({line for line in COMMANDS + INLINE if line.startswith("fairlead ")} - set(OURS))
"""Verbs that are only named, without their arguments."""


def parse(command: Any, name: str, arguments: list[str]) -> None:
    """Parse a command line down to its verb; run nothing."""
    group = hasattr(command, "commands")
    with command.make_context(name, list(arguments), resilient_parsing=group):
        if group:
            parse(command.commands[arguments[0]], arguments[0], arguments[1:])


@pytest.mark.parametrize("line", OURS)
def test_fairlead_commands_parse(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(typer.main.get_command(app), "fairlead", shlex.split(line)[1:])


@pytest.mark.parametrize("line", VERBS)
def test_named_verbs_exist(line):
    command: Any = typer.main.get_command(app)
    for word in [word for word in shlex.split(line)[1:] if "." not in word and "/" not in word]:
        command = command.commands[word]


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_shell(block):
    done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_named_by_commands_exist():
    named = [
        word for line in COMMANDS for word in shlex.split(line) if re.match(r"(docker|k8s|configs)/", word)
    ]
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


@needs_kubectl
def test_objects_named_by_commands_exist():
    objects = rendered("kind")
    kinds = {"deploy": of_kind(objects, "Deployment"), "job": of_kind(objects, "Job")}
    named = set(re.findall(r"\b(deploy|job)/([\w-]+)", PAGE))
    assert len(named) >= 2
    assert [name for kind, name in named if name not in kinds[kind]] == []
    for folder in re.findall(r"kubectl kustomize (\S+)", PAGE):
        assert kustomize(ROOT / folder)


@needs_kubectl
def test_custom_overlays_render(tmp_path: Path):
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    # test_extensions.py checks the objects of a cluster.
    block, metric = (one for one in blocks if "patches:" in one)
    claim = of_kind(_rendered_from(tmp_path, block), "PersistentVolumeClaim")["fairlead"]
    assert claim["spec"]["storageClassName"] == "shared"
    hpa = os.path.relpath(checkout() / "components" / "hpa", tmp_path.resolve())
    resources, _, _ = block.partition("patches:")
    objects = _rendered_from(tmp_path, f"{resources}components: [{hpa}]\n{metric}")
    (by_tasks,) = of_kind(objects, "HorizontalPodAutoscaler")["rollout-worker"]["spec"]["metrics"]
    assert by_tasks["external"]["metric"]["name"] == "fairlead_tasks"
    *_, values = re.findall(r"```yaml\n(.*?)```", GITOPS, re.DOTALL)
    objects = _rendered_from(tmp_path, values)
    patched = {
        name
        for name, one in of_kind(objects, "Deployment", "Job").items()
        if one["spec"]["template"]["spec"].get("nodeSelector") == {"accelerator": "h100"}
    }
    assert patched == {"policy", "reward", "reference", "trainer"}
    assert of_kind(objects, "PersistentVolumeClaim")["fairlead"]["spec"]["volumeName"] == "an-existing-volume"


def _rendered_from(folder: Path, kustomization: str) -> list[Manifest]:
    """Render an overlay of a page, with this checkout's overlay as its base."""
    gpu = os.path.relpath(checkout() / "overlays" / "gpu", folder.resolve())
    text = kustomization.replace("../fairlead/k8s/overlays/gpu", gpu)
    (folder / "kustomization.yaml").write_text(text)
    assert yaml.safe_load(text)["kind"] == "Kustomization"
    return kustomize(folder)


def test_gitops_objects_apply_the_folder_that_render_writes_to():
    application, kustomization, _ = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GITOPS, re.DOTALL)
    )
    assert "ApplyOutOfSyncOnly=true" in application["spec"]["syncPolicy"]["syncOptions"]
    (path,) = re.findall(r"> (\S+)/fairlead.yaml", GITOPS)
    assert (application["spec"]["source"]["path"], kustomization["spec"]["path"]) == (path, f"./{path}")
    assert application["spec"]["syncPolicy"]["automated"]["prune"] is kustomization["spec"]["prune"] is True
