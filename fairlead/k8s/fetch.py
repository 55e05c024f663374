"""Downloads a model of a hub to the run's volume once, by a Job, so that pods do not each download it."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

from fairlead.errors import ClusterRefused, ConfigError
from fairlead.k8s.changes import condition, wait_until_gone
from fairlead.k8s.cluster import Cluster
from fairlead.k8s.labels import COMPONENT, FETCH, NAME
from fairlead.k8s.manifests import Manifest, job_spec

NAME_OF_JOB = "fetch-model"
"""Name of the Job, one at a time."""
_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOLDER = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
_TOKEN = "fairlead-hub"
_UNREAD = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original/*")
"""Files with code in them, and files that nothing here reads."""
_SCRIPT = """set -eu
model=$1 revision=$2 folder=$3
shift 3
if [ -e "$folder" ]; then echo "$folder exists"; exit 0; fi
mkdir -p "$(dirname "$folder")"
hf download "$model" --revision "$revision" --local-dir "$folder.part" "$@"
rm -rf "$folder.part/.cache"
mv "$folder.part" "$folder"
"""


def job(objects: Sequence[Manifest], model: str, *, revision: str, folder: str, has_token: bool) -> Manifest:
    """Return the Job.

    Args:
        objects: the objects of a run; its trainer's image has the downloader, its pod `files` the volume.
        model: id of the model, such as `org/name`.
        revision: branch, tag or commit.
        folder: target on the volume, relative to `/fairlead`.
        has_token: use the hub's token in the Secret `fairlead-hub`.

    Raises:
        ConfigError: the id or the folder is invalid.
    """
    if not _MODEL.fullmatch(model):
        raise ConfigError("model", got=model, allowed="the id of a model of the hub, such as org/name")
    if not _FOLDER.fullmatch(folder):
        raise ConfigError("to", got=folder, allowed="a folder relative to /fairlead, such as models/name")
    trainer = next(one for one in objects if one["kind"] in ("Job", "JobSet"))
    files = next(
        one
        for one in objects
        if (one["kind"], one["metadata"]["labels"].get(NAME)) == ("Deployment", "files")
    )
    template = copy.deepcopy(files["spec"]["template"])
    labels = files["metadata"]["labels"] | {NAME: NAME_OF_JOB, COMPONENT: FETCH}
    template["metadata"]["labels"] = labels
    spec = template["spec"]
    spec["restartPolicy"] = "Never"
    (container,) = spec["containers"]
    del container["readinessProbe"]
    container["name"] = NAME_OF_JOB
    container["image"] = job_spec(trainer)["template"]["spec"]["containers"][0]["image"]
    container["args"] = ["sh", "-c", _SCRIPT, "sh", model, revision, folder]
    container["args"] += [f"--exclude={pattern}" for pattern in _UNREAD]
    # Files go to the volume at once; a cache of their parts would fill /tmp.
    container["env"] = [
        {"name": "HF_HOME", "value": "/tmp/hub"},
        {"name": "HF_XET_CHUNK_CACHE_SIZE_BYTES", "value": "0"},
    ]
    if has_token:
        token = {"secretKeyRef": {"name": _TOKEN, "key": "token"}}
        container["env"].append({"name": "HF_TOKEN", "valueFrom": token})
    container["resources"] = {
        "requests": {"cpu": "500m", "memory": "1Gi"},
        "limits": {"memory": "4Gi"},
    }
    name = files["metadata"]["name"].removesuffix("files") + NAME_OF_JOB
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": files["metadata"]["namespace"], "labels": labels},
        "spec": {"backoffLimit": 3, "template": template},
    }


def start(cluster: Cluster, wanted: Manifest, *, timeout_seconds: float) -> None:
    """Create the Job; one that has ended is replaced.

    Raises:
        ClusterRefused: the volume does not exist, or another download is at work.
    """
    (claim,) = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in wanted["spec"]["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume and volume["name"] == "fairlead"
    ]
    if cluster.get("v1", "PersistentVolumeClaim", claim) is None:
        raise ClusterRefused(
            f"namespace {cluster.namespace} has no volume {claim}: create it with `up --stage files`"
        )
    name = wanted["metadata"]["name"]
    found = cluster.get("batch/v1", "Job", name)
    if found is not None:
        if _arguments(found) == _arguments(wanted) and not condition(found, "Failed"):
            return
        if not condition(found, "Failed") and not condition(found, "Complete"):
            raise ClusterRefused(f"the Job {name} is still downloading {_arguments(found)[4]}")
        cluster.delete("batch/v1", "Job", name)
        wait_until_gone(cluster, NAME_OF_JOB, timeout_seconds=timeout_seconds)
    cluster.apply(wanted)


def _arguments(owner: Manifest) -> list[str]:
    return list(owner["spec"]["template"]["spec"]["containers"][0]["args"])
