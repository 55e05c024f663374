"""What `up` restarts and deletes, `diff`, the operator's role, and why pods do not start or were replaced."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import yaml

from fairlead.k8s.manifests import checkout
from tests.cluster_controllers import CREATING, READY, STARTS
from tests.cluster_stand_in import JOB_SETS, KEDA, StandIn, named, writes

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")

UP = ("up", "run.toml", "--overlay", "kind")
DIFF = ("diff", "run.toml", "--overlay", "kind")
ROLE = yaml.safe_load((checkout() / "components" / "operator-role" / "role.yaml").read_text())["rules"]
BY_HAND = {("create", "", "pods/exec"), ("get", "", "pods/log"), ("get", "", "pods")}
"""Rights for kubectl exec and kubectl logs."""
OPTIONAL = (
    *("cert-manager.io", "gateway.networking.k8s.io", "jobset.x-k8s.io", "keda.sh"),
    *("leaderworkerset.x-k8s.io", "monitoring.coreos.com"),
)


def test_diff_shows_restarts_and_deletions_and_changes_nothing(cluster, fairlead):
    fairlead(*UP, "--component", "network-policies")
    before = dict(cluster.objects)
    writes(cluster)
    assert fairlead(*DIFF, "--component", "network-policies").stdout == "no changes\n"
    shown = fairlead(*DIFF, "--set", "ppo.updates=8", "--set", "reward.batching.max_items=32").stdout
    restarts = {line.split(":")[0]: line for line in shown.splitlines() if line.startswith("restarts")}
    assert set(restarts) == {
        f"restarts {name}" for name in ("trainer", "reward", "rollout-worker", "gateway")
    }
    assert "ppo.updates 7 → 8" in restarts["restarts trainer"]
    assert restarts["restarts reward"] == "restarts reward: reward.batching.max_items default → 32"
    assert "deletes NetworkPolicy default-deny" in shown
    assert "creates ConfigMap run-reward-" in shown
    assert (writes(cluster), set(cluster.objects)) == ([], set(before))


def test_up_deletes_what_the_manifests_no_longer_have_but_nothing_of_others(cluster, fairlead):
    cluster.kinds |= KEDA
    fairlead(*UP, "--component", "network-policies", "--component", "keda")
    theirs = named(cluster, "networkpolicies")["default-deny"] | {
        "metadata": {
            "name": "theirs",
            "labels": {"app.kubernetes.io/part-of": "fairlead"},
            "managedFields": [{"manager": "kubectl", "operation": "Apply"}],
        }
    }
    cluster.objects["networkpolicies", "fairlead", "theirs"] = theirs
    shown = fairlead(*UP, "--stage", "files", "--component", "network-policies", "--component", "keda")
    assert "deleted" not in shown.stderr, "another stage of the same run"
    assert named(cluster, "deployments").keys() >= {"policy", "files"}
    shown = fairlead(*UP)
    lines = shown.stderr.splitlines()
    applied = next(line for line in lines if line.startswith("applied "))
    for name in ("NetworkPolicy default-deny", "ScaledObject rollout-worker"):
        announced = lines.index(f"will delete {name}, which these manifests do not have")
        assert announced < lines.index(applied) < lines.index(f"deleted {name}")
    assert list(named(cluster, "networkpolicies")) == ["theirs"]
    assert named(cluster, "scaledobjects") == {}
    assert {"persistentvolumeclaims", "secrets"} <= {key[0] for key in cluster.objects}


@pytest.mark.slow
def test_operator_role_suffices_and_has_no_right_that_is_not_used(cluster, fairlead):
    cluster.kinds |= KEDA | JOB_SETS
    cluster.rules = ROLE
    parts = ("--component", "keda", "--component", "network-policies")
    fairlead(*UP, *parts)
    fairlead(*UP, *parts, "--set", "ppo.updates=8")
    fairlead(*UP, *parts, "--component", "jobset")
    fairlead(*UP, "--component", "hpa", "--component", "backup")
    fairlead("status")
    fairlead("scale", "policy=2")
    fairlead("down")
    fairlead("down", "--purge", "--yes")
    granted = {
        (verb, group, resource)
        for rule in ROLE
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if group not in OPTIONAL and resource != "ingresses"
    }
    used = {one for one in cluster.asked if one[1] not in OPTIONAL}
    # An object of any of these kinds may be left out of later manifests.
    unused = {one for one in granted - used - BY_HAND if one[0] not in ("get", "list", "delete")}
    assert unused == set()


def test_missing_right_is_named_with_its_verb(cluster, fairlead):
    cluster.rules = [rule | {"verbs": [verb for verb in rule["verbs"] if verb != "create"]} for rule in ROLE]
    shown = fairlead(*UP, code=2)
    assert 'cannot create resource "secrets"' in shown.stderr
    assert "k8s/components/operator-role" in shown.stderr


def event(about: str, name: str, reason: str, message: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{name}.1", "labels": {}},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": about, "name": name},
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }


def add(cluster: StandIn, found: dict[str, Any]) -> None:
    cluster.objects["events", "fairlead", found["metadata"]["name"]] = found


def test_volume_that_is_not_provisioned_and_mount_that_fails_are_named(cluster, fairlead):
    cluster.controllers.scripts |= {"redis": [CREATING], "files": [{"pending": True}]}
    cluster.objects["persistentvolumeclaims", "fairlead", "fairlead"] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "fairlead", "labels": {"app.kubernetes.io/part-of": "fairlead"}},
        "spec": {},
        "status": {"phase": "Pending"},
    }
    reason = "rpc error: MULTI_NODE_MULTI_WRITER is not supported\nmore"
    add(cluster, event("PersistentVolumeClaim", "fairlead", "ProvisioningFailed", reason))
    shown = fairlead(*UP, "--stage", "files", "--timeout-seconds", "0.5", code=4)
    assert (
        "files 0/1 (volume fairlead is not provisioned: ProvisioningFailed: rpc error: "
        "MULTI_NODE_MULTI_WRITER is not supported)"
    ) in shown.stderr
    fairlead(*UP, "--timeout-seconds", "0.5", code=4)
    pod = next(name for name in named(cluster, "pods") if name.startswith("redis"))
    add(cluster, event("Pod", pod, "FailedMount", 'secret "redis" not found'))
    assert 'redis (FailedMount: secret "redis" not found)' in fairlead("status").stdout


def test_refused_pods_are_explained_by_their_owner(cluster, fairlead):
    cluster.controllers.scripts["trainer"] = [READY]
    fairlead(*UP)
    for name in [name for name in named(cluster, "pods") if name.startswith("policy")]:
        del cluster.objects["pods", "fairlead", name]
    add(cluster, event("ReplicaSet", "policy-5d4f", "FailedCreate", "exceeded quota: compute"))
    fairlead("status")  # The controllers notice.
    assert "policy (FailedCreate: exceeded quota: compute)" in fairlead("status").stdout


def test_restarts_of_trainer_and_queue_are_shown_after_their_pods_are_gone(cluster, fairlead):
    fairlead(*UP)
    named(cluster, "jobs")["trainer"]["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.controllers.failed["trainer"] = 2
    changed = {"manager": "fairlead", "operation": "Apply", "time": "2025-12-31T00:00:00Z"}
    queue = named(cluster, "statefulsets")["redis"]["metadata"]
    queue |= {"managedFields": [changed], "creationTimestamp": changed["time"]}
    fairlead("status")  # The controllers notice.
    shown = fairlead("status").stdout
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert rows["trainer"][1:3] == ["1/1", "2"]
    assert "redis (its pod was replaced" in shown


def test_status_of_nine_processes_without_a_node_fits_a_terminal(cluster, fairlead):
    message = (
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {gpu: true}. "
        "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    )
    names = (
        "files",
        "redis",
        "policy",
        "reward",
        "reference",
        "rollout-worker",
        "gateway",
        "trainer",
        "weights",
    )
    cluster.controllers.scripts |= {name: [{"has no node": message}] for name in names}
    shown = fairlead(*UP, "--timeout-seconds", "0.5", code=4)
    assert shown.stderr.count("1 Insufficient cpu, 2 node(s)") == 2, "once while it waits, once in the error"
    shown = fairlead("status", columns="80").stdout
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert len(shown.splitlines()) <= 14
    assert " ".join(shown.split()).count("not scheduled: 1 Insufficient cpu, 2 node(s)") == 1


def test_numbers_of_pods_are_reported_when_a_run_is_taken_down(cluster, fairlead):
    cluster.controllers.scripts["policy"] = [STARTS, READY]
    fairlead(*UP)
    fairlead("scale", "policy=3", "rollout-worker=4")
    shown = fairlead("down")
    assert "for as many pods as before: fairlead k8s scale policy=3 rollout-worker=4" in shown.stderr


def test_numbers_that_an_autoscaler_sets_are_not_reported(cluster, fairlead):
    cluster.kinds |= KEDA
    where = ("--run", "one", "--namespace", "team", "--create-namespace")
    fairlead(*UP, "--component", "keda", *where)
    fairlead("scale", "reward=2", *where[:4])
    named(cluster, "deployments", "team")["one-rollout-worker"]["spec"]["replicas"] = 9
    shown = fairlead("down", *where[:4])
    assert "as before: fairlead k8s scale -n team --run one reward=2\n" in shown.stderr
    assert "namespace team has no run one" in fairlead("status", *where[:4]).stdout


def test_what_an_autoscaler_of_kubernetes_scales_is_not_scaled_by_hand(cluster, fairlead):
    fairlead(*UP, "--component", "hpa")
    shown = fairlead("scale", "rollout-worker=4", code=2)
    assert "rollout-worker is scaled by a HorizontalPodAutoscaler, from 1 to 16" in shown.stderr
    fairlead("down")
    assert named(cluster, "horizontalpodautoscalers") == {}


def test_external_queue_needs_its_own_secret_and_no_other(cluster, fairlead):
    flags = ("--component", "external-redis", "--set", "queue.redis_url=rediss://queue.test:6380")
    assert "has no Secret fairlead-redis" in fairlead(*UP, *flags, code=2).stderr
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "fairlead-redis", "labels": {}}}
    cluster.objects["secrets", "fairlead", "fairlead-redis"] = secret
    assert "ignored" not in fairlead(*UP, *flags).stderr
    assert list(named(cluster, "secrets")) == ["fairlead-redis"]
    assert "redis" not in named(cluster, "statefulsets")


def test_backups_belong_to_every_stage_and_survive_a_purge(cluster, fairlead):
    fairlead(*UP, "--stage", "files", "--component", "backup")
    assert list(named(cluster, "cronjobs")) == ["backup"]
    shown = fairlead("down", "--purge", "--yes").stdout
    assert "kept: PersistentVolumeClaim fairlead-backup" in shown
    assert (named(cluster, "cronjobs"), list(named(cluster, "persistentvolumeclaims"))) == (
        {},
        ["fairlead-backup"],
    )
