"""What a stuck pod waits for, as `status` names it: images, volumes, GPUs, taints, quotas."""

from __future__ import annotations

from typing import Any

import pytest

from fairlead.k8s.manifests import job_spec
from tests.cluster_stand_in import JOB_SETS, LEADER_WORKER_SETS, StandIn, add_process, named

CLAIM = "PersistentVolumeClaim"
BACK_OFF = {
    "state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "y"'}},
    "ready": False,
}
PULL = 'Failed to pull image "y": rpc error: code = NotFound: registry.test/y:1: not found'
QUOTA = (
    'Error creating: pods "one-trainer-0-x" is forbidden: exceeded quota: compute, requested: '
    "requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8"
)
UNBOUND = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/3 nodes"


def warn(cluster: StandIn, kind: str, name: str, reason: str, message: str, second: int = 0) -> None:
    cluster.objects["events", "fairlead", f"{name}.{second}"] = {
        "metadata": {"name": f"{name}.{second}", "labels": {}},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": kind, "name": name},
        "lastTimestamp": f"2026-01-01T00:00:{second:02}Z",
    }


def claim(cluster: StandIn, phase: str) -> None:
    cluster.objects["persistentvolumeclaims", "fairlead", "one-fairlead"] = {
        "metadata": {"name": "one-fairlead", "labels": {}},
        "status": {"phase": phase},
    }


def mount_claim(cluster: StandIn, pod: str) -> None:
    volume = {"name": "fairlead", "persistentVolumeClaim": {"claimName": "one-fairlead"}}
    cluster.objects["pods", "fairlead", pod]["spec"] = {
        **cluster.objects["pods", "fairlead", pod]["spec"],
        "volumes": [volume],
    }


def shown(fairlead: Any, process: str) -> str:
    """Return what `status` says that a process waits for."""
    fairlead("status", "--run", "one")  # The controllers notice.
    text = fairlead("status", "--run", "one", columns="400").stdout.partition("\n\n")[2]
    (line,) = [line for line in text.splitlines() if line.startswith(process)]
    return line.removeprefix(f"{process} (").removesuffix(")")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            "0/4 nodes are available: 4 Insufficient nvidia.com/gpu. preemption: no",
            "4 Insufficient nvidia.com/gpu",
        ),
        (
            "0/2 nodes are available: 2 node(s) had untolerated taint {team: b}. preemption: no",
            "2 node(s) had untolerated taint {team: b}",
        ),
        ('persistentvolumeclaim "one-fairlead" not found', 'persistentvolumeclaim "one-fairlead" not found'),
    ],
)
def test_why_the_scheduler_finds_no_node(cluster, fairlead, message, says):
    cluster.controllers.scripts["one-policy"] = [{"has no node": message}]
    add_process(cluster, "deployments", "policy")
    assert shown(fairlead, "policy") == f"not scheduled: {says}"


def test_the_cause_of_an_image_that_cannot_be_pulled(cluster, fairlead):
    cluster.controllers.scripts["one-policy"] = [BACK_OFF]
    (pod,) = add_process(cluster, "deployments", "policy")
    assert shown(fairlead, "policy") == 'ImagePullBackOff: Back-off pulling image "y"'
    warn(cluster, "Pod", pod, "Failed", PULL)
    warn(cluster, "Pod", pod, "Failed", "Error: ImagePullBackOff", second=1)
    warn(cluster, "Pod", pod, "BackOff", 'Back-off pulling image "y"', second=2)
    assert shown(fairlead, "policy") == f"Failed: {PULL}"


@pytest.mark.parametrize(
    "state",
    [{"has no node": UNBOUND}, {"pending": True}],
    ids=["Immediate", "WaitForFirstConsumer"],
)
def test_a_volume_that_is_not_bound_is_named_with_its_cause(cluster, fairlead, state):
    cluster.controllers.scripts["one-files"] = [state]
    (pod,) = add_process(cluster, "deployments", "files")
    mount_claim(cluster, pod)
    assert shown(fairlead, "files") == "volume one-fairlead does not exist"
    claim(cluster, "Pending")
    assert shown(fairlead, "files") == "volume one-fairlead is not provisioned"
    warn(cluster, CLAIM, "one-fairlead", "ProvisioningFailed", "no ReadWriteMany in this class")
    says = "volume one-fairlead is not provisioned: ProvisioningFailed: no ReadWriteMany in this class"
    assert shown(fairlead, "files") == says


@pytest.mark.parametrize(
    ("plural", "maker"), [("jobs", "Job"), ("deployments", "ReplicaSet"), ("statefulsets", "")]
)
def test_a_quota_that_refuses_all_pods_or_some_is_named(cluster, fairlead, plural, maker):
    first, second = add_process(cluster, plural, "trainer", 2)
    owner = {"jobs": "one-trainer", "deployments": "one-trainer-5d4f7c", "statefulsets": "one-trainer"}[
        plural
    ]
    warn(cluster, maker or "StatefulSet", owner, "FailedCreate", QUOTA)
    warn(cluster, "Job", "one-trainer-b", "FailedCreate", "of another run")
    del cluster.objects["pods", "fairlead", second]
    assert shown(fairlead, "trainer") == f"FailedCreate: {QUOTA}"
    del cluster.objects["pods", "fairlead", first]
    assert shown(fairlead, "trainer") == f"FailedCreate: {QUOTA}"


def test_a_quota_is_named_for_a_job_set_and_from_the_condition_of_a_deployment(cluster, fairlead):
    cluster.kinds |= JOB_SETS
    add_process(cluster, "jobs", "trainer")
    job = cluster.objects.pop(("jobs", "fairlead", "one-trainer"))
    spec = {"replicatedJobs": [{"name": "ranks", "template": {"spec": job_spec(job)}}]}
    cluster.objects["jobsets", "fairlead", "one-trainer"] = job | {"kind": "JobSet", "spec": spec}
    add_process(cluster, "deployments", "policy")
    for pod in list(named(cluster, "pods")):
        del cluster.objects["pods", "fairlead", pod]
    warn(cluster, "Job", "one-trainer-ranks-0", "FailedCreate", QUOTA)
    assert shown(fairlead, "trainer") == f"FailedCreate: {QUOTA}"
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": "exceeded quota: a",
    }
    cluster.controllers.conditions["one-policy"] = [failure]
    assert shown(fairlead, "policy") == "FailedCreate: exceeded quota: a"


@pytest.mark.parametrize("made", ["one-policy", "one-policy-0"])
def test_a_quota_that_refuses_a_node_of_a_policy_is_named(cluster, fairlead, made):
    cluster.kinds |= LEADER_WORKER_SETS
    (pod,) = add_process(cluster, "deployments", "policy")
    owner = cluster.objects.pop(("deployments", "fairlead", "one-policy"))
    group = {"leaderTemplate": owner["spec"]["template"], "size": 2}
    spec = {"leaderWorkerTemplate": group, "replicas": 1}
    cluster.objects["leaderworkersets", "fairlead", "one-policy"] = owner | {
        "kind": "LeaderWorkerSet",
        "spec": spec,
    }
    del cluster.objects["pods", "fairlead", pod]
    warn(cluster, "StatefulSet", "one-policy-b", "FailedCreate", "of another run")
    warn(cluster, "StatefulSet", made, "FailedCreate", QUOTA)
    assert shown(fairlead, "policy") == f"FailedCreate: {QUOTA}"


def test_an_init_container_that_fails_is_shown(cluster, fairlead):
    (pod,) = add_process(cluster, "deployments", "policy")
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    ended = {"exitCode": 1, "message": "copying\nno space left"}
    cluster.controllers.init[pod] = [
        {"state": {"waiting": waiting}, "lastState": {"terminated": ended}, "ready": False, "restartCount": 3}
    ]
    cluster.objects["pods", "fairlead", pod]["script"] = [
        {"state": {"waiting": {"reason": "PodInitializing"}}, "ready": False}
    ]
    says = shown(fairlead, "policy")
    assert says.startswith("ended with exit code 1, restarting: no space left")
    assert fairlead("status", "--run", "one").stdout.splitlines()[1].split()[2] == "3"
