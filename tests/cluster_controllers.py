"""Controllers for the stand-in of a cluster: objects with a template get pods, whose states advance.

Time is simulated: every request that lists pods is one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fairlead.k8s.manifests import job_spec

JOBS = ("jobs", "jobsets")
"""Kinds whose pods run to their end."""
OWNERS = ("deployments", "statefulsets", *JOBS)
"""Kinds that have pods."""
Key = tuple[str, str, str]
"""Plural, namespace, name."""

CREATING = {"state": {"waiting": {"reason": "ContainerCreating"}}, "ready": False, "started": False}
STARTS = {"state": {"running": {}}, "ready": False, "started": False}
READY = {"state": {"running": {}}, "ready": True, "started": True}
NO_NODE = {"has no node": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}
_NOW = "2026-01-01T00:00:00Z"


def terminated(code: int, message: str) -> dict[str, Any]:
    return {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}


def crash_loop(code: int, message: str) -> dict[str, Any]:
    """Return the state of a container that ended and waits for its next restart."""
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5s restarting failed container"}
    return {
        "state": {"waiting": waiting},
        "lastState": {"terminated": terminated(code, message)},
        "ready": False,
        "restartCount": 1,
    }


def ended(code: int, message: str) -> dict[str, Any]:
    """Return the state of a container that ended for good."""
    return {"state": {"terminated": terminated(code, message)}, "ready": False}


@dataclass
class Controllers:
    """The controllers of Deployments, StatefulSets and Jobs, and the node, on the objects of the API."""

    objects: dict[Key, dict[str, Any]]
    scripts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By process: container states of pods created from now on, one per step; the last state stays."""
    failed: dict[str, int] = field(default_factory=dict)
    """By Job: number of its failed pods."""
    conditions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Conditions by Deployment or StatefulSet."""
    init: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """States of the init containers by pod."""
    made: int = 0
    """Number of pods created."""

    def applied(self, key: Key) -> None:
        """Create the pods that an object wants, and end those with other settings."""
        owner = self.objects[key]
        if not _owns_pods(owner):
            return
        spec = job_spec(owner)
        pods = self._pods_of(key)
        stale = [one for one in pods if self.objects[one]["spec"] != spec["template"]["spec"]]
        fresh = [one for one in pods if one not in stale]
        wanted = spec.get("parallelism" if key[0] in JOBS else "replicas", 1)
        for gone in stale + fresh[wanted:]:
            self._end(gone)
        for _ in range(len(fresh), wanted):
            self._make(key)

    def deleted(self, key: Key) -> None:
        """End the pods of a deleted object; replace a deleted pod."""
        for pod in self._pods_of(key) if key[0] in OWNERS else ():
            self._end(pod)
        for owner, found in list(self.objects.items()):
            if key[2].startswith(f"{owner[2]}-pod-") and _owns_pods(found):
                self._make(owner)

    def tick(self) -> None:
        """Advance one step: every pod takes its next state; an ending pod disappears after the next step."""
        for key in [key for key in self.objects if key[0] == "pods"]:
            pod = self.objects[key]
            if pod.pop("gone", False):
                del self.objects[key]
            elif "deletionTimestamp" in pod["metadata"]:
                pod["gone"] = True
            else:
                self._move(pod)
        for key, owner in self.objects.items():
            if _owns_pods(owner):
                self._roll_up(key, owner)

    def _pods_of(self, owner: Key) -> list[Key]:
        """Return the pods that are not ending."""
        return [
            key
            for key, pod in self.objects.items()
            if key[:2] == ("pods", owner[1])
            and key[2].startswith(f"{owner[2]}-pod-")
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def _make(self, owner: Key) -> None:
        self.made += 1
        name = f"{owner[2]}-pod-{self.made}"
        template = job_spec(self.objects[owner])["template"]
        created = f"2026-01-01T00:00:{self.made % 60:02}Z"
        self.objects["pods", owner[1], name] = {
            "metadata": {
                "name": name,
                "labels": template["metadata"]["labels"],
                "creationTimestamp": created,
            },
            "spec": template["spec"],
            "status": {"startTime": created},
            "script": self.scripts.get(owner[2], [CREATING, CREATING, STARTS, READY]),
        }

    def _end(self, key: Key) -> None:
        self.objects[key]["metadata"]["deletionTimestamp"] = _NOW

    def _move(self, pod: dict[str, Any]) -> None:
        step, script = pod.get("step", 0), pod["script"]
        pod["step"] = step + 1
        state = script[min(step, len(script) - 1)]
        if state.get("pending"):
            pod["status"] = {"phase": "Pending"}
        elif message := state.get("has no node"):
            scheduled = {"type": "PodScheduled", "status": "False", "message": message}
            pod["status"] = {"conditions": [scheduled]}
        else:
            pod["status"] = {"startTime": pod["metadata"]["creationTimestamp"], "containerStatuses": [state]}
        if init := self.init.get(pod["metadata"]["name"]):
            pod["status"]["initContainerStatuses"] = init

    def _roll_up(self, key: Key, owner: dict[str, Any]) -> None:
        """Write the status that the real controller would write."""
        pods = [self.objects[pod] for pod in self._pods_of(key)]
        states = [state for pod in pods for state in pod["status"].get("containerStatuses", ())]
        ready = sum(1 for state in states if state["ready"])
        if key[0] not in JOBS:
            owner["status"] = {
                "observedGeneration": owner["metadata"]["generation"],
                "replicas": len(pods),
                "updatedReplicas": len(pods),
                "readyReplicas": ready,
                "conditions": self.conditions.get(key[2], []),
            }
            return
        ends = [end for state in states if (end := state["state"].get("terminated"))]
        owner["status"] = {"ready": ready, "failed": self.failed.get(key[2], 0)}
        if ends:
            kind = "Failed" if ends[0]["exitCode"] else "Complete"
            owner["status"]["conditions"] = [{"type": kind, "status": "True", "message": "a pod failed"}]
        if key[0] == "jobsets":
            all_ready = ready == job_spec(owner)["parallelism"]
            owner["status"] |= {"ready": None, "replicatedJobsStatus": [{"ready": int(all_ready)}]}
            if ends and not ends[0]["exitCode"]:
                owner["status"]["conditions"][0]["type"] = "Completed"


def _owns_pods(manifest: dict[str, Any]) -> bool:
    spec = manifest.get("spec", {})
    return "template" in spec or "replicatedJobs" in spec
