"""The manifests of one run: `kubectl kustomize` over an overlay, with the run's file as a ConfigMap.

Reads k8s/ and writes a temporary folder; it does not connect to a cluster. docs/kubernetes.md describes the
folders.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from fairlead import __version__
from fairlead.config import RunConfig
from fairlead.config.feedback import FeedbackSection
from fairlead.config.http import GatewaySection
from fairlead.config.infrastructure import RanksSection, redis_url_without_secrets
from fairlead.config.saving import as_toml
from fairlead.errors import ConfigError
from fairlead.k8s import policy_nodes
from fairlead.k8s.folders import check_once, components_of, existing
from fairlead.k8s.labels import COMPONENT, INSTANCE, NAME
from fairlead.k8s.names import check_image_names, check_namespace_name
from fairlead.k8s.prefix import check_run_name, prefixed
from fairlead.k8s.settings import pod_templates, split
from fairlead.planning.gpus import engine_gpus

Manifest = dict[str, Any]
"""A Kubernetes object as JSON values."""

JOB_SET = ("jobset.x-k8s.io/v1alpha2", "JobSet")
"""Version and kind of the object that owns the trainer with the component `jobset`."""
GPU = "nvidia.com/gpu"
"""Resource of GPUs."""
RANKS_PORT = 29500
"""Port at which rank 0 waits for the others; in k8s/base/trainer/."""
_PARTS = {
    "files": ("shared", "files"),
    "sft": ("shared", "files", "trainer"),
    "reward-model": ("shared", "files", "trainer"),
    "preference": ("shared", "files", "trainer"),
}
STAGES = (*_PARTS, "ppo")
"""What to bring up: only the volume and a pod to copy files, a stage of the trainer, or the whole run."""

VOLUME = "fairlead"
"""Claim of the volume with the run's files; in k8s/base/shared/."""
SHARED = ("reward", "reference")
"""Services that a run can share with others: their models do not change."""
_ADDRESS = re.compile(r"(dns:///)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?:\d{1,5}")
_CERTIFIED = "policy"
"""Name that every certificate of a run has."""
_TLS_SECRET = "fairlead-tls"
"""Secret with certificate, key and authority; in k8s/components/tls/."""
_FEEDBACK = "feedback"
"""Label of the objects of the component of this name. People rank answers before and between stages, too."""
BACKUP = "backup"
"""Label of the objects of backups, which every stage has, and whose volume is never deleted."""
_IMAGES = ("fairlead-light", "fairlead-model", "fairlead-vllm")
_MODELS = "fairlead-models"
"""Image of the component `model-image`, which kustomize does not name: it is in a volume."""
_RENDER_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a run is deployed, and with which parts."""

    overlay: str
    """Name of a folder in k8s/overlays, or the path of another overlay."""
    namespace: str
    """Namespace of the run."""
    prefix: bool = False
    """Whether the names of objects begin with that of the run, so that several runs share the namespace."""
    volume: str = ""
    """An existing claim with the run's files; empty for one of its own."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Addresses of reward and reference services of another run, which this one does not deploy."""
    components: Sequence[str] = ()
    """Names of folders in k8s/components, or paths of others, to add to those of the overlay."""
    registry: str = ""
    """Registry and path of the images; empty for the images that the overlay names."""
    tag: str = __version__
    """Tag of the images; used with `registry`."""
    stage: str = "ppo"
    """One of `STAGES`."""


def checkout() -> Path:
    """Return the folder of the manifests.

    Raises:
        ConfigError: if this package is not in a source checkout.
    """
    folder = Path(__file__).resolve().parents[2] / "k8s"
    if not (folder / "base" / "kustomization.yaml").is_file():
        raise ConfigError("k8s", got=f"no manifests at {folder}", allowed="a source checkout of Fairlead")
    return folder


def render(config: RunConfig, target: Target) -> list[Manifest]:
    """Return the objects of a stage; see `render_run`."""
    return of_stage(render_run(config, target), target.stage)


def of_stage(objects: Sequence[Manifest], stage: str) -> list[Manifest]:
    """Return the objects that a stage needs, out of those of the whole run."""
    parts = (*_PARTS[stage], _FEEDBACK, BACKUP, "namespace") if stage in _PARTS else None
    return [one for one in objects if parts is None or one["metadata"]["labels"].get(COMPONENT) in parts]


def render_run(config: RunConfig, target: Target) -> list[Manifest]:
    """Return every object of the run, also those that its stage does not need.

    They are in the order of kustomize. Each process has a ConfigMap of the settings that it reads.

    Raises:
        ConfigError: if kubectl is missing, an overlay, component or stage is unknown, a component is there
            twice, a namespace, registry or tag is invalid, an image has no registry, an origin is not
            https, the run has no queue, two autoscalers scale the same process, the name of the run cannot
            be a prefix, the address of a shared service is invalid, or kustomize refuses the manifests.
    """
    if target.stage not in STAGES:
        raise ConfigError("stage", got=target.stage, allowed=f"one of {', '.join(STAGES)}")
    check_namespace_name(target.namespace)
    check_image_names(target.registry, target.tag)
    if target.prefix:
        check_run_name(config.name)
    with tempfile.TemporaryDirectory(prefix="fairlead-k8s-") as name:
        folder = Path(name).resolve()
        (folder / "run.toml").write_text(as_toml(_inside(config), without_defaults=True), encoding="utf-8")
        (folder / "kustomization.yaml").write_text(
            yaml.safe_dump(_kustomization(config, target, folder), sort_keys=False), encoding="utf-8"
        )
        objects = kustomize(folder)
    left_out = {*target.shared, *(("reference",) if config.reference.engine == "trainer" else ())}
    objects = [one for one in objects if one["metadata"]["labels"].get(NAME) not in left_out]
    objects = _with_routes(config, objects)
    _check_autoscalers(objects)
    policy_nodes.check(objects, config)
    _fit_groups(objects, config)
    if not has_queue(objects):
        _check_external_queue(config)
    else:
        # The cluster's own queue is used, also if the file names that of one machine.
        config = config.model_copy(update={"queue": config.queue.model_copy(update={"redis_url": ""})})
    objects = split(_inside(config), [_fitted(manifest, config, target) for manifest in objects])
    _check_images(of_stage(objects, target.stage))
    if target.volume:
        objects = _on_volume(objects, target.volume)
    if target.prefix:
        _expect_one_certificate(config, objects)
        objects = prefixed(objects, config.name)
    return objects


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, so that a diff shows their lines."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def as_yaml(objects: Sequence[Manifest]) -> str:
    """Return objects as YAML, the same for the same objects."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False)


def kustomize(folder: Path) -> list[Manifest]:
    """Return the objects that `kubectl kustomize` renders from a folder.

    Raises:
        ConfigError: if kubectl is missing or fails; contains the end of its error.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ConfigError(
            "kubectl", got="no kubectl on the PATH", allowed="kubectl 1.27 or newer, to render the manifests"
        )
    # Rendering needs no cluster, so this kubectl gets no way to reach one. It ends in half a second, and
    # would spend a fifth of it on collecting garbage.
    environment = os.environ | {"KUBECONFIG": os.devnull, "GOGC": "400"}
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=_RENDER_SECONDS,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise ConfigError(
            "k8s", got=f"…{done.stderr.strip()[-110:]}", allowed="a folder that kustomize renders"
        )
    # The parser in C: dashboards are long texts.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(done.stdout, Loader=loader) if document]


def _inside(config: RunConfig) -> RunConfig:
    """Return the configuration with the paths of the pods."""
    return config.model_copy(update={"runs": Path("/fairlead/runs"), "base": Path("/fairlead/data")})


def _kustomization(config: RunConfig, target: Target, folder: Path) -> Mapping[str, object]:
    manifests = checkout()
    # Others change what `feedback` and `gateway-ingress` add, and `external-redis` what others have added.
    # The JobSet takes over the Job as all others have changed it, a LeaderWorkerSet the Deployment, and Kueue
    # has a label on a Job or JobSet.
    order = (
        *(_FEEDBACK, "gateway-ingress", "", "external-redis", "external-redis-ca"),
        *("policy-nodes", "jobset", "kueue"),
    )
    names = sorted(target.components, key=lambda name: order.index(name if name in order else ""))
    components = [existing(manifests / "components", name, "component") for name in names]
    overlay = existing(manifests / "overlays", target.overlay, "overlay")
    check_once(components, components_of(overlay))
    addresses = _shared_addresses(target.shared)
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": target.namespace,
        "resources": [os.path.relpath(overlay, folder)],
        "components": [os.path.relpath(component, folder) for component in components],
        "configMapGenerator": [
            {"name": "run", "behavior": "replace", "files": ["run.toml"]},
            *({"name": "cluster", "behavior": "merge", "literals": [one]} for one in addresses),
        ],
        # On pods as well, where Prometheus reads the name of the run.
        "labels": [{"pairs": {INSTANCE: config.name.rstrip("._-")}, "includeTemplates": True}],
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


def _shared_addresses(shared: Mapping[str, str]) -> list[str]:
    """Return the variables with the addresses of services of another run."""
    found: list[str] = []
    for name, address in shared.items():
        if name not in SHARED:
            raise ConfigError("shared", got=name, allowed=f"one of {', '.join(SHARED)}")
        if not _ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) not in range(1, 65_536):
            raise ConfigError(
                "shared", got=f"{name}={address}", allowed=f"HOST:PORT, such as {name}={name}.team-a.svc:5002"
            )
        target = address if address.startswith("dns:///") else f"dns:///{address}"
        found.append(f'FAIRLEAD_{name.upper()}__ADDRESSES=["{target}"]')
    return found


def _on_volume(objects: Sequence[Manifest], claim: str) -> list[Manifest]:
    """Return the objects without the claim of the run's files, and with another one instead."""
    found = [
        one for one in objects if (one["kind"], one["metadata"]["name"]) != ("PersistentVolumeClaim", VOLUME)
    ]
    for manifest in found:
        for template in pod_templates(manifest):
            for volume in template["spec"].get("volumes") or ():
                source = volume.get("persistentVolumeClaim") or {}
                if source.get("claimName") == VOLUME:
                    source["claimName"] = claim
    return found


def _expect_one_certificate(config: RunConfig, objects: Sequence[Manifest]) -> None:
    """Let clients expect a name that the certificate of the namespace has: it does not name every run."""
    for manifest in objects:
        data = manifest.get("data") or {}
        if "FAIRLEAD_TLS__CERTIFICATE" in data and not config.tls.server_name:
            data["FAIRLEAD_TLS__SERVER_NAME"] = _CERTIFIED


def _fitted(manifest: Manifest, config: RunConfig, target: Target) -> Manifest:
    """Set what kustomize cannot: the queue that the autoscaler reads, the trainer's stage and ranks, the GPUs
    of the model services, and images that are volumes.
    """
    if config.observe.metrics_tls:
        _set_metrics_tls(manifest)
    if manifest["kind"] == "ScaledObject":
        _set_queue(manifest, config, target.namespace)
    for template in pod_templates(manifest):
        for volume in template["spec"].get("volumes") or ():
            if target.registry and (volume.get("image") or {}).get("reference") == _MODELS:
                volume["image"]["reference"] = f"{target.registry.rstrip('/')}/{_MODELS}:{target.tag}"
    is_trainer = manifest["kind"] in ("Job", "JobSet") and manifest["metadata"]["name"] == "trainer"
    if is_trainer and target.stage != "files":
        job = job_spec(manifest)
        arguments = job["template"]["spec"]["containers"][0]["args"]
        arguments[arguments.index("trainer.ppo")] = f"trainer.{target.stage.replace('-', '_')}"
        first_pod = "trainer-0" if manifest["kind"] == "Job" else "trainer-ranks-0-0"
        _set_ranks(job, config.ranks, first_pod=first_pod)
    if manifest["kind"] == "JobSet":
        # The labels of templates that kustomize knows are set in `_kustomization`.
        job_spec(manifest)["template"]["metadata"]["labels"][INSTANCE] = config.name.rstrip("._-")
    if manifest["metadata"]["labels"].get(COMPONENT) == "model-service" and manifest["kind"] == "Deployment":
        _set_gpus(manifest["spec"], engine_gpus(getattr(config, manifest["metadata"]["name"])))
    return manifest


def _fit_groups(objects: Sequence[Manifest], config: RunConfig) -> None:
    """Fit a policy on several nodes to the run, and give each of its pods its share of the GPUs."""
    for manifest in objects:
        if manifest["kind"] == policy_nodes.LEADER_WORKER_SET[1]:
            gpus = policy_nodes.fit(manifest, config, labels={INSTANCE: config.name.rstrip("._-")})
            for template in pod_templates(manifest):
                _set_gpus({"template": template}, gpus)


def has_queue(objects: Sequence[Manifest]) -> bool:
    """Return whether the objects have a queue of their own, and do not use one of the component
    `external-redis`.
    """
    return any(
        one["kind"] == "StatefulSet" and one["metadata"]["labels"].get(NAME) == "redis" for one in objects
    )


def _check_external_queue(config: RunConfig) -> None:
    """Refuse a run whose queue no pod can reach."""
    if urlsplit(config.queue.redis_url).scheme not in ("redis", "rediss"):
        raise ConfigError(
            "queue.redis_url",
            got=redis_url_without_secrets(config.queue.redis_url) if config.queue.redis_url else "",
            allowed="redis:// or rediss:// with the address of your Redis, for the component external-redis",
        )


def _check_autoscalers(objects: Sequence[Manifest]) -> None:
    """Refuse two autoscalers of the same process: each would undo what the other does."""
    kinds = ("ScaledObject", "HorizontalPodAutoscaler")
    scaled = [one["spec"]["scaleTargetRef"]["name"] for one in objects if one["kind"] in kinds]
    if twice := sorted({name for name in scaled if scaled.count(name) > 1}):
        raise ConfigError(
            "component", got=f"two autoscalers of {', '.join(twice)}", allowed="one: keda, hpa or your own"
        )


def _set_queue(scaled: Manifest, config: RunConfig, namespace: str) -> None:
    """Set the queue that KEDA reads: that of the run, or the external one of `queue.redis_url`."""
    for trigger in scaled["spec"]["triggers"]:
        if trigger["type"] != "redis-streams":
            continue
        found = trigger["metadata"]
        found["stream"] = f"fairlead:{{{config.name}}}:prompts"
        if not config.queue.redis_url:
            found["address"] = f"redis.{namespace}.svc:6379"
            continue
        url = urlsplit(config.queue.redis_url)
        found["address"] = f"{url.hostname}:{url.port or 6379}"
        found |= {"enableTLS": "true"} if url.scheme == "rediss" else {}
        found |= {"databaseIndex": url.path.strip("/")} if url.path.strip("/") else {}


def _set_metrics_tls(manifest: Manifest) -> None:
    """Make Prometheus, and the probes of pods, use HTTPS on the metrics port."""
    if manifest["kind"] == "PodMonitor":

        def secret(key: str) -> dict[str, str]:
            return {"name": _TLS_SECRET, "key": key}

        for endpoint in manifest["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] != "metrics":  # redis_exporter
                continue
            endpoint["scheme"] = "https"
            endpoint["tlsConfig"] = {
                "ca": {"secret": secret("ca.crt")},
                "cert": {"secret": secret("tls.crt")},
                "keySecret": secret("tls.key"),
                # Pods are scraped by their addresses.
                "serverName": _CERTIFIED,
            }
    for template in pod_templates(manifest):
        for container in template["spec"]["containers"]:
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                request = container.get(name, {}).get("httpGet", {})
                if request.get("port") == "metrics":
                    request["scheme"] = "HTTPS"


def _with_routes(config: RunConfig, objects: Sequence[Manifest]) -> list[Manifest]:
    """Return the objects with the routes into the cluster that have an origin, each with its host and path.

    Raises:
        ConfigError: an origin is not https, and the routes serve no other.
    """
    services = {one["metadata"]["name"] for one in objects if one["kind"] == "Service"}
    has_routes = any(one["kind"] == "HTTPRoute" for one in objects)
    found: list[Manifest] = []
    for manifest in objects:
        if manifest["kind"] not in ("Ingress", "HTTPRoute"):
            found.append(manifest)
            continue
        name = manifest["metadata"]["name"]
        sections: dict[str, FeedbackSection | GatewaySection] = {
            "gateway": config.gateway,
            _FEEDBACK: config.feedback,
        }
        if name not in sections:
            found.append(manifest)
        elif (
            sections[name].origin and name in services and not (manifest["kind"] == "Ingress" and has_routes)
        ):
            _set_origin(manifest, name, sections[name])
            found.append(manifest)
    return found


def _set_origin(route: Manifest, name: str, section: FeedbackSection | GatewaySection) -> None:
    """Give an Ingress or an HTTPRoute the host name and the path under which a service is reached."""
    origin, path = urlsplit(section.origin), section.root_path or "/"
    if origin.scheme != "https":
        raise ConfigError(f"{name}.origin", got=section.origin, allowed="an https:// address on a cluster")
    spec = route["spec"]
    (rule,) = spec["rules"]
    if route["kind"] == "HTTPRoute":
        spec["hostnames"] = [origin.hostname]
        rule["matches"][0]["path"]["value"] = path
        return
    (certificate,) = spec["tls"]
    certificate["hosts"] = [origin.hostname]
    rule["host"] = origin.hostname
    rule["http"]["paths"][0]["path"] = path


def job_spec(manifest: Manifest) -> Manifest:
    """Return the specification of a Job, or of the only Job of a JobSet."""
    spec: Manifest = manifest["spec"]
    if manifest["kind"] == "JobSet":
        (ranks,) = spec["replicatedJobs"]
        spec = ranks["template"]["spec"]
    return spec


def _set_gpus(workload: Manifest, number: int) -> None:
    """Set the number of GPUs of a pod that has one."""
    (container,) = workload["template"]["spec"]["containers"]
    if GPU in container["resources"]["limits"]:
        container["resources"]["limits"][GPU] = str(number)


def _set_ranks(job: Manifest, section: RanksSection, *, first_pod: str) -> None:
    """Give a Job one pod for each node of ranks, and each pod a launcher and a GPU for each of its ranks."""
    if section.nodes * section.per_node == 1:
        return
    (container,) = job["template"]["spec"]["containers"]
    arguments = container["args"]
    arguments.insert(arguments.index("-m") + 1, "trainer.distributed.launch")
    _set_gpus(job, section.per_node)
    job["completions"] = job["parallelism"] = section.nodes
    # A lost rank ends the pods of all others, which count as failures, too; in a JobSet the limit is 0.
    job["backoffLimit"] *= section.nodes
    if section.nodes > 1 and not section.address:
        address = f"{first_pod}.{job['template']['spec']['subdomain']}:{RANKS_PORT}"
        container["env"].append({"name": "FAIRLEAD_RANKS__ADDRESS", "value": address})


def _check_images(objects: Sequence[Manifest]) -> None:
    """Refuse an image without a registry: Docker Hub would be searched, where anyone may own the name."""
    for manifest in objects:
        pods = [template["spec"] for template in pod_templates(manifest)]
        images = [container["image"] for pod in pods for container in pod["containers"]]
        images += [
            one["image"]["reference"] for pod in pods for one in pod.get("volumes") or () if "image" in one
        ]
        for image in images:
            if "/" not in image:
                raise ConfigError(
                    "registry",
                    got=f"image {image} of {manifest['metadata']['name']}",
                    allowed="an image with a registry: --registry registry.example.com/team",
                )
