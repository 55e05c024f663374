"""The settings that each process reads, and the ConfigMaps that give it these and no others.

With one file for all, a change of `ppo.updates` would replace the pods of every model. The names of the
ConfigMaps end in a hash of their contents, so a change replaces only the pods of processes that read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fairlead.config import RunConfig
from fairlead.config.saving import as_toml

_FILE = "run.toml"
_MAP = "run"
"""Name of the ConfigMap with the whole file, before its hash."""

_ALL = ("name", "runs", "base", "observe", "tls", "keys")
_SERVER = (*_ALL, "server", "deterministic", "ppo.max_staleness")
_NOT_OF_THE_TRAINER = ("gateway", "feedback", "iterate", "local", "server", "rollout_worker")

READS: Mapping[str, Collection[str]] = {
    "policy": (*_SERVER, "policy", "model", "weights", "seed", "ppo.lora"),
    "reward": (*_SERVER, "reward"),
    "reference": (*_SERVER, "reference", "sampling.temperature", "evaluation.temperature"),
    "weights": (*_ALL, "server", "weights"),
    "rollout-worker": (
        *(*_ALL, "queue", "rollout_worker", "policy", "reward", "reference"),
        *("ppo.num_samples", "ppo.lora", "sampling.max_new_tokens"),
    ),
    "gateway": (*_ALL, "server", "gateway", "policy", "reward", "feedback.addresses", "feedback.tls"),
    "feedback": (*_ALL, "server", "feedback"),
    "trainer": tuple(name for name in RunConfig.model_fields if name not in _NOT_OF_THE_TRAINER),
}
"""Dotted keys of settings and sections by process. Includes what the checks of `RunConfig` compare with them:
`deterministic` requires `ppo.max_staleness`, `reference.engine` `ppo.lora`, and `ppo.num_samples` the limits.
"""


def split(config: RunConfig, objects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the objects with a ConfigMap for each process that reads the run's file, instead of one for all.

    The ConfigMap of the whole file remains if other pods, of an overlay, mount it.

    Args:
        config: the run, with the paths of the pods.
        objects: the objects of the run, with one ConfigMap for all; changed in place.
    """
    found: list[dict[str, Any]] = []
    for manifest in objects:
        if manifest["kind"] == "ConfigMap" and manifest["metadata"]["name"].rpartition("-")[0] == _MAP:
            whole = manifest["metadata"]["name"]
            for owner in objects:
                volumes = list(_volumes([owner], whole)) if owner["metadata"]["name"] in READS else ()
                if volumes:
                    found.append(_map(owner, config, manifest))
                for volume in volumes:
                    volume["configMap"]["name"] = found[-1]["metadata"]["name"]
            if not any(_volumes(objects, whole)):
                continue
        found.append(manifest)
    return found


def pod_templates(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pod templates of an object."""
    spec = manifest.get("spec") or {}
    jobs = [one["template"]["spec"] for one in spec.get("replicatedJobs") or ()]
    if "jobTemplate" in spec:
        jobs.append(spec["jobTemplate"]["spec"])
    group = spec.get("leaderWorkerTemplate") or {}
    jobs += [{"template": group[name]} for name in ("leaderTemplate", "workerTemplate") if name in group]
    yield from (job["template"] for job in (spec, *jobs) if "spec" in (job.get("template") or {}))


def _map(owner: dict[str, Any], config: RunConfig, whole: dict[str, Any]) -> dict[str, Any]:
    """Return the ConfigMap of a process, which belongs to the same stages as the process."""
    process = owner["metadata"]["name"]
    text = as_toml(config, without_defaults=True, only=READS[process])
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    metadata = whole["metadata"] | {
        "name": f"{_MAP}-{process}-{digest}",
        "labels": whole["metadata"]["labels"] | owner["metadata"]["labels"],
    }
    return whole | {"metadata": metadata, "data": {_FILE: text}}


def _volumes(objects: Sequence[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    for manifest in objects:
        for template in pod_templates(manifest):
            for volume in template["spec"].get("volumes") or ():
                if (volume.get("configMap") or {}).get("name") == name:
                    yield volume
