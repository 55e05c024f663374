"""The manifests of one run: `kubectl kustomize` over an overlay, with the run's file as ConfigMap.

Reads k8s/ and writes a temporary folder; knows no cluster. docs/kubernetes.md says what is where.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fairlead import __version__
from fairlead.config import RunConfig
from fairlead.config.saving import as_toml
from fairlead.errors import ConfigError

Manifest = dict[str, Any]
"""One object of Kubernetes, as its JSON."""

PART_OF = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"
NAME = "app.kubernetes.io/name"
OURS = f"{PART_OF}=fairlead"
"""Selects what these manifests have made."""

_PARTS = {
    "files": ("shared", "files"),
    "sft": ("shared", "files", "trainer"),
    "reward-model": ("shared", "files", "trainer"),
}
STAGES = (*_PARTS, "ppo")
"""How far to bring a run up: the volume and a door to it, a stage of the trainer alone, or everything."""

_IMAGES = ("fairlead-light", "fairlead-model")
_RENDER_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a run goes, and how."""

    overlay: str
    """Name of a folder in k8s/overlays, or the path of an overlay of one's own."""
    namespace: str
    """One run is one namespace."""
    components: Sequence[str] = ()
    """Names of folders in k8s/components that the overlay does not have."""
    registry: str = ""
    """Where the cluster finds the images; empty: as the overlay says."""
    tag: str = __version__
    """Tag of the images, with `registry`."""
    stage: str = "ppo"
    """One of `STAGES`."""


def checkout() -> Path:
    """The folder of the manifests.

    Raises:
        ConfigError: if there is no source checkout around this package.
    """
    folder = Path(__file__).resolve().parents[2] / "k8s"
    if not (folder / "base" / "kustomization.yaml").is_file():
        raise ConfigError("k8s", got=f"no manifests at {folder}", allowed="a source checkout of fairlead")
    return folder


def render(config: RunConfig, target: Target) -> list[Manifest]:
    """Every object of the run, in the order of kustomize.

    Raises:
        ConfigError: without kubectl, for an unknown overlay, component or stage, an image that no cluster
            could find, or manifests that kustomize refuses.
    """
    if target.stage not in STAGES:
        raise ConfigError("stage", got=target.stage, allowed=f"one of {', '.join(STAGES)}")
    with tempfile.TemporaryDirectory(prefix="fairlead-k8s-") as name:
        folder = Path(name).resolve()
        (folder / "run.toml").write_text(_run_file(config), encoding="utf-8")
        (folder / "kustomization.yaml").write_text(
            yaml.safe_dump(_kustomization(config, target, folder), sort_keys=False), encoding="utf-8"
        )
        objects = kustomize(folder)
    objects = [_fitted(manifest, config, target) for manifest in objects]
    if target.stage in _PARTS:
        parts = _PARTS[target.stage]
        objects = [one for one in objects if one["metadata"]["labels"].get(COMPONENT) in parts]
    _check_images(objects)
    return objects


def kustomize(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder.

    Raises:
        ConfigError: without kubectl, or with what it says.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ConfigError(
            "kubectl", got="none on the PATH", allowed="kubectl 1.27 or newer: it renders manifests"
        )
    # Rendering asks no cluster, whatever this kubectl does by itself.
    environment = os.environ | {"KUBECONFIG": os.devnull}
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=_RENDER_SECONDS,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise ConfigError("k8s", got=f"…{done.stderr.strip()[-110:]}", allowed="a folder that renders")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def _run_file(config: RunConfig) -> str:
    """The run's file for the ConfigMap: paths are those of the pods, no password is in it."""
    inside = config.model_copy(update={"runs": Path("/fairlead/runs"), "base": Path("/fairlead/data")})
    return as_toml(inside, without_defaults=True)


def _kustomization(config: RunConfig, target: Target, folder: Path) -> Mapping[str, object]:
    manifests = checkout()
    components = [_existing(manifests / "components", name, "component") for name in target.components]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": target.namespace,
        "resources": [os.path.relpath(_existing(manifests / "overlays", target.overlay, "overlay"), folder)],
        "components": [os.path.relpath(component, folder) for component in components],
        "configMapGenerator": [{"name": "run", "behavior": "replace", "files": ["run.toml"]}],
        "labels": [{"pairs": {"app.kubernetes.io/instance": config.name.rstrip("._-")}}],
        "images": [
            {
                "name": f"{prefix}{name}",
                "newName": f"{target.registry.rstrip('/')}/{name}",
                "newTag": target.tag,
            }
            for name in _IMAGES
            for prefix in ("", "localhost/")
            if target.registry
        ],
    }


def _existing(folder: Path, name: str, flag: str) -> Path:
    """A shipped folder by its name, or any other by its path."""
    own = Path(name).resolve()
    if re.fullmatch(r"[\w-]+", name) and (folder / name / "kustomization.yaml").is_file():
        return folder / name
    if (own / "kustomization.yaml").is_file():
        return own
    known = sorted(path.name for path in folder.iterdir() if path.is_dir())
    raise ConfigError(
        flag, got=name, allowed=f"one of {', '.join(known)}, or a folder with a kustomization.yaml"
    )


def _fitted(manifest: Manifest, config: RunConfig, target: Target) -> Manifest:
    """What kustomize cannot know: the keys that an autoscaler looks at, the stage of the trainer."""
    if manifest["kind"] == "ScaledObject":
        for trigger in manifest["spec"]["triggers"]:
            if trigger["type"] == "redis-streams":
                trigger["metadata"]["stream"] = f"fairlead:{{{config.name}}}:prompts"
                trigger["metadata"]["address"] = f"redis.{target.namespace}.svc:6379"
    if manifest["kind"] == "Job" and manifest["metadata"]["name"] == "trainer" and target.stage != "files":
        arguments = manifest["spec"]["template"]["spec"]["containers"][0]["args"]
        arguments[arguments.index("trainer.ppo")] = f"trainer.{target.stage.replace('-', '_')}"
    return manifest


def _check_images(objects: Sequence[Manifest]) -> None:
    """A name without a registry would be looked for at Docker Hub, where a stranger could put it."""
    for manifest in objects:
        pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers", ()):
            if "/" not in container["image"]:
                raise ConfigError(
                    "registry",
                    got=f"image {container['image']} of {manifest['metadata']['name']}",
                    allowed="where the cluster finds it: --registry registry.example.com/team",
                )
