"""A policy on several nodes: the LeaderWorkerSet of the component `policy-nodes`.

Sets what kustomize cannot: the number of pods and GPUs from `[policy.vllm]`, and what the further pods run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairlead.config import RunConfig
from fairlead.errors import ConfigError
from fairlead.planning.gpus import engine_gpus

LEADER_WORKER_SET = ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")
"""Version and kind of the object that owns the policy with the component."""
_NAME = "app.kubernetes.io/name"
_NODES = "fairlead-nodes"
"""Label of the pods among which the network policy `policy-nodes` allows every port."""
_OF_A_SERVER = ("ports", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle")
"""Fields of a container that serves."""


def check(objects: Sequence[dict[str, Any]], config: RunConfig) -> None:
    """Check that a policy has several nodes if, and only if, an object of the manifests has them.

    Raises:
        ConfigError: if the component or `policy.vllm.nnodes` is missing.
    """
    nodes = _number(config)
    has_nodes = any(one["kind"] == LEADER_WORKER_SET[1] for one in objects)
    if has_nodes and nodes == 1:
        raise ConfigError(
            "policy.vllm.nnodes",
            got=nodes,
            allowed="2 or more with the component policy-nodes, and policy.engine 'vllm'",
        )
    if nodes > 1 and not has_nodes:
        raise ConfigError("policy.vllm.nnodes", got=nodes, allowed="1 without the component policy-nodes")
    if engine_gpus(config.policy) % nodes:
        raise ConfigError(
            "policy.vllm.nnodes",
            got=nodes,
            allowed=f"a number that divides the {engine_gpus(config.policy)} GPUs of the policy",
        )


def fit(owner: dict[str, Any], config: RunConfig, *, labels: dict[str, str]) -> int:
    """Give a LeaderWorkerSet its number of pods, and the further ones their program.

    Args:
        owner: the LeaderWorkerSet; changed in place.
        config: the run.
        labels: labels of its pods besides those of the manifests.

    Returns:
        The number of GPUs of each pod.
    """
    group = owner["spec"]["leaderWorkerTemplate"]
    nodes = _number(config)
    group["size"] = nodes
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        template["metadata"]["labels"] |= {_NODES: owner["metadata"]["name"], **labels}
        # The pods of a group belong near one another, and a group never fits on one node.
        template["spec"].pop("topologySpreadConstraints", None)
    worker = group["workerTemplate"]
    # The Service of the policy leads to first pods only.
    worker["metadata"]["labels"][_NAME] = f"{owner['metadata']['name']}-node"
    (container,) = worker["spec"]["containers"]
    arguments = container["args"]
    arguments[arguments.index("services.policy")] = "services.policy.vllm.node"
    for name in _OF_A_SERVER:
        container.pop(name, None)
    return engine_gpus(config.policy) // nodes


def as_deployment(owner: dict[str, Any]) -> dict[str, Any]:
    """Return a LeaderWorkerSet in the form of the Deployment of its first pods."""
    spec, status = owner["spec"], owner.get("status") or {}
    # It has no number of its settings that the controller has seen before version 0.10.
    seen = status.get("observedGeneration", owner["metadata"].get("generation"))
    return owner | {
        "kind": LEADER_WORKER_SET[1],
        "spec": {
            "replicas": spec.get("replicas", 1),
            "template": spec["leaderWorkerTemplate"]["leaderTemplate"],
        },
        "status": status | {"observedGeneration": seen},
    }


def _number(config: RunConfig) -> int:
    found = config.policy.vllm.get("nnodes", 1) if config.policy.engine == "vllm" else 1
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ConfigError("policy.vllm.nnodes", got=found, allowed="a whole number above 0")
    return found
