"""The controllers of the stand-in for a cluster: what has a template gets pods, whose states move on.

In the simplest way: every list of pods is a step of time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, str, str]
"""Plural, namespace, name."""

CREATING = {"state": {"waiting": {"reason": "ContainerCreating"}}, "ready": False, "started": False}
STARTS = {"state": {"running": {}}, "ready": False, "started": False}
READY = {"state": {"running": {}}, "ready": True, "started": True}
NO_NODE = {"has no node": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}
_NOW = "2026-01-01T00:00:00Z"


def terminated(code: int, words: str) -> dict[str, Any]:
    return {"exitCode": code, "reason": "Error" if code else "Completed", "message": words}


def crash_loop(code: int, words: str) -> dict[str, Any]:
    """A container that ended and waits for its next start."""
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5s restarting failed container"}
    return {
        "state": {"waiting": waiting},
        "lastState": {"terminated": terminated(code, words)},
        "ready": False,
        "restartCount": 1,
    }


def ended(code: int, words: str) -> dict[str, Any]:
    """A container that ended for good."""
    return {"state": {"terminated": terminated(code, words)}, "ready": False}


@dataclass
class Controllers:
    """Deployments, StatefulSets, Jobs and the node, over the objects of the API."""

    objects: dict[Key, dict[str, Any]]
    scripts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By process: states of the container of pods made from now on, one for each step; the last one stays."""
    made: int = 0

    def applied(self, key: Key) -> None:
        """Makes the pods that an object wants; those of other settings end."""
        owner = self.objects[key]
        if "template" not in owner.get("spec", {}):
            return
        pods = self._pods_of(key)
        stale = [one for one in pods if self.objects[one]["spec"] != owner["spec"]["template"]["spec"]]
        fresh = [one for one in pods if one not in stale]
        wanted = owner["spec"].get("parallelism" if key[0] == "jobs" else "replicas", 1)
        for gone in stale + fresh[wanted:]:
            self._end(gone)
        for _ in range(len(fresh), wanted):
            self._make(key)

    def deleted(self, key: Key) -> None:
        """Ends the pods of what was deleted; a deleted pod gets a successor."""
        for pod in self._pods_of(key):
            self._end(pod)
        for owner, found in list(self.objects.items()):
            if key[2].startswith(f"{owner[2]}-pod-") and "template" in found.get("spec", {}):
                self._make(owner)

    def tick(self) -> None:
        """One step: every pod takes its next state, one that ends is gone after the next."""
        for key in [key for key in self.objects if key[0] == "pods"]:
            pod = self.objects[key]
            if pod.pop("gone", False):
                del self.objects[key]
            elif "deletionTimestamp" in pod["metadata"]:
                pod["gone"] = True
            else:
                self._move(pod)
        for key, owner in self.objects.items():
            if "template" in owner.get("spec", {}):
                self._roll_up(key, owner)

    def _pods_of(self, owner: Key) -> list[Key]:
        """Those that do not end already."""
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
        template = self.objects[owner]["spec"]["template"]
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
        if message := state.get("has no node"):
            scheduled = {"type": "PodScheduled", "status": "False", "message": message}
            pod["status"] = {"conditions": [scheduled]}
        else:
            pod["status"] = {"startTime": pod["metadata"]["creationTimestamp"], "containerStatuses": [state]}

    def _roll_up(self, key: Key, owner: dict[str, Any]) -> None:
        """The status that its controller would write."""
        pods = [self.objects[pod] for pod in self._pods_of(key)]
        states = [state for pod in pods for state in pod["status"].get("containerStatuses", ())]
        ready = sum(1 for state in states if state["ready"])
        if key[0] != "jobs":
            owner["status"] = {
                "observedGeneration": owner["metadata"]["generation"],
                "replicas": len(pods),
                "updatedReplicas": len(pods),
                "readyReplicas": ready,
            }
            return
        ends = [end for state in states if (end := state["state"].get("terminated"))]
        owner["status"] = {"ready": ready}
        if ends:
            kind = "Failed" if ends[0]["exitCode"] else "Complete"
            owner["status"]["conditions"] = [{"type": kind, "status": "True", "message": "a pod failed"}]
