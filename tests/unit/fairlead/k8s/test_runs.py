"""Several runs in one namespace against a stand-in for a cluster's API: submit, list, delete, and `--run`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fairlead.cli.main import app
from fairlead.k8s.manifests import checkout
from tests.cluster_controllers import CREATING, NO_NODE, READY, ended
from tests.cluster_stand_in import KEDA, StandIn, named, writes

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")

ROLES = checkout() / "components" / "operator-role"
INSTANCE = "app.kubernetes.io/instance"


def submit(name: str, *flags: str) -> tuple[str, ...]:
    return ("run", "submit", "run.toml", "--overlay", "kind", "--set", f"name={name}", *flags)


def of_run(cluster: StandIn, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the objects of a run, but no pods."""
    return {
        (key[0], key[2]): one
        for key, one in cluster.objects.items()
        if one["metadata"].get("labels", {}).get(INSTANCE) == name and key[0] != "pods"
    }


def test_two_runs_and_one_without_a_prefix_do_not_touch_each_other(cluster, fairlead):
    cluster.kinds |= KEDA
    fairlead("up", "run.toml", "--overlay", "kind")
    shown = fairlead(*submit("one", "--component", "keda"))
    assert shown.stdout == "submitted one; it is shown by: fairlead k8s status --run one\n"
    assert "created the Secret one-redis with new passwords" in shown.stderr
    fairlead(*submit("two"))
    before = {name: set(of_run(cluster, name)) for name in ("parcels", "two")}
    writes(cluster)
    fairlead("up", "run.toml", "--overlay", "kind", "--run", "one", "--set", "ppo.updates=9")
    fairlead("scale", "reward=2", "--run", "one")
    assert named(cluster, "deployments")["one-reward"]["spec"]["replicas"] == 2
    assert "replicas" not in named(cluster, "deployments")["reward"]["spec"]
    shown = fairlead("status", "--run", "two").stdout
    assert {line.split()[0] for line in shown.splitlines()[1:]} >= {"policy", "trainer", "redis"}
    changed = {line.rpartition("/")[2] for line in writes(cluster)}
    assert {name for name in changed if not name.startswith("one-")} == {"scale"}
    assert not named(cluster, "scaledobjects"), "left out by the last `up`"
    fairlead("down")
    fairlead("down", "--run", "one")
    assert set(of_run(cluster, "two")) == before["two"]
    assert ("deployments", "policy") not in of_run(cluster, "parcels")
    assert {name for kind, name in of_run(cluster, "one")} == {"one-fairlead", "one-redis"}
    assert "has no run; runs with a prefix: one, two (name one with --run)" in fairlead("status").stdout


def test_list_shows_state_update_and_age_in_80_columns(cluster, fairlead):
    assert fairlead("run", "list").stdout == "namespace fairlead has no runs\n"
    longest = "a-run-with-the-longest-name-30"
    cluster.controllers.scripts |= {
        f"{longest}-trainer": [CREATING, READY],
        "lost-trainer": [READY, ended(2, "first\npolicy.path: got 'none'")],
        "over-trainer": [READY, ended(0, "")],
        "stuck-policy": [NO_NODE],
    }
    for name in (longest, "lost", "over", "stuck", "gone"):
        fairlead(*submit(name))
    fairlead("up", "run.toml", "--overlay", "kind", "--stage", "files")
    fairlead("run", "delete", "gone")
    for _ in range(2):
        fairlead("run", "list")  # The controllers notice.
    for pod in named(cluster, "pods"):
        if pod.startswith(f"{longest}-trainer"):
            cluster.logs[pod] = (
                '{"message": "update 11999 of 20000: reward 1.0, KL 0.1"}\n{"message": "checkpoint of 3"}\n'
                '{"message": "update 12000 of 20000: reward 1.0, KL 0.1"}\n{"message": "waiting"}\n'
            )
    shown = fairlead("run", "list", columns="80").stdout
    assert max(len(line) for line in shown.splitlines()) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in shown.split("\n\n")[0].splitlines()}
    assert rows["run"] == ["state", "stage", "update", "age"]
    assert rows[longest][:3] == ["running", "ppo", "12000/20000"]
    assert rows[longest][4] == "d"
    assert rows["lost"][:3] == ["failed", "ppo", "–"]
    assert rows["over"][:2] == ["done", "ppo"]
    assert rows["stuck"][:2] == ["waiting", "ppo"]
    assert rows["gone"][:2] == ["stopped", "–"]
    assert rows["parcels"][:4] == ["*", "no", "trainer", "–"]
    assert "lost: exit code 2: policy.path: got 'none'" in shown
    assert "stuck: policy 0/1 (not scheduled: 1 Insufficient nvidia.com/gpu)" in shown
    assert "* without a prefix: verbs without --run are about this one" in shown


def test_a_taken_name_is_refused_and_nothing_is_changed(cluster, fairlead):
    fairlead(*submit("one"))
    writes(cluster)
    shown = fairlead(*submit("one", "--set", "ppo.updates=99"), code=2)
    assert "namespace fairlead has a run one already: choose another name" in shown.stderr
    assert "fairlead k8s up --run one" in shown.stderr
    assert writes(cluster) == []


def test_only_one_of_two_callers_gets_a_name(cluster):
    command = [sys.executable, "-m", "fairlead.cli", "k8s", *submit("one")]
    callers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    shown = [caller.communicate(timeout=120)[0].decode() for caller in callers]
    assert sorted(caller.returncode for caller in callers) == [0, 2], shown
    assert sum("has a run one already" in each for each in shown) == 1


def test_an_object_of_another_run_is_not_taken_over(cluster, fairlead):
    policies = ("--component", "network-policies")
    fairlead(*submit("one", *policies))
    # The policy `redis` of this run has the name of the policy `external-redis` of the other.
    shown = fairlead(*submit("one-external", *policies), code=2)
    assert (
        "NetworkPolicy one-external-redis in namespace fairlead belongs to one: choose another"
        in shown.stderr
    )
    assert named(cluster, "networkpolicies")["one-external-redis"]["metadata"]["labels"][INSTANCE] == "one"
    assert not [name for kind, name in of_run(cluster, "one-external") if kind == "deployments"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (submit("Warmer_2"), "name: got 'Warmer_2', allowed: 1 to 30 lower-case letters"),
        (submit("one", "--shared", "policy=x:1"), "shared: got 'policy', allowed: one of reward, reference"),
        (submit("one", "--shared", "reward"), "shared: got 'reward', allowed: SERVICE=HOST:PORT"),
        (submit("one", "--shared", "reward=x:99999"), "shared: got 'reward=x:99999', allowed: HOST:PORT"),
        (submit("one", "--shared", "reward=http://x"), "shared: got 'reward=http://x', allowed: HOST:PORT"),
        (("run", "delete", "../x"), "name: got '../x'"),
        (("status", "--run", "X"), "such as x"),
    ],
)
def test_bad_names_and_addresses_are_refused_before_any_request(cluster, fairlead, arguments, says):
    assert says in fairlead(*arguments, code=2).stderr
    assert cluster.requests == []


def test_delete_keeps_volumes_unless_asked_and_a_new_run_continues(cluster, fairlead):
    fairlead(*submit("one"))
    fairlead(*submit("two"))
    shown = fairlead("run", "delete", "one")
    assert shown.stdout == "deleted one; kept: PersistentVolumeClaim one-fairlead, Secret one-redis\n"
    assert "stopping one-trainer" in shown.stderr
    shown = fairlead(*submit("one"))
    assert "continues from the volume one-fairlead, which an earlier run one has left" in shown.stderr
    result = CliRunner().invoke(app, ["k8s", "run", "delete", "one", "--volumes"], input="n\n")
    assert result.exit_code == 1
    assert of_run(cluster, "one")
    assert "nothing is kept" in fairlead("run", "delete", "one", "--volumes", "--yes").stdout
    assert of_run(cluster, "one") == {}
    assert ("deployments", "two-policy") in of_run(cluster, "two")
    shown = fairlead("run", "delete", "one", code=2)
    assert "namespace fairlead has no run one; its runs: two" in shown.stderr


def test_a_shared_service_is_not_deployed_and_its_run_is_not_deleted(cluster, fairlead):
    fairlead(*submit("first"))
    fairlead(
        *submit(
            "second", "--shared", "reward=first-reward:5002", "--shared", "reference=other.team-b.svc:5003"
        )
    )
    assert not [name for kind, name in of_run(cluster, "second") if "reward" in name or "reference" in name]
    (settings,) = [
        one["data"] for (kind, name), one in of_run(cluster, "second").items() if "-cluster-" in name
    ]
    assert settings["FAIRLEAD_REWARD__ADDRESSES"] == '["dns:///first-reward:5002"]'
    assert settings["FAIRLEAD_REFERENCE__ADDRESSES"] == '["dns:///other.team-b.svc:5003"]'
    assert settings["FAIRLEAD_POLICY__ADDRESSES"] == '["dns:///second-policy:5001"]'
    shown = fairlead("run", "delete", "first", code=2)
    assert "run second uses reward of this run" in shown.stderr
    assert "first is in use by second: delete these first, or add --yes" in shown.stderr
    assert ("deployments", "first-reward") in of_run(cluster, "first")
    fairlead("run", "delete", "second")
    fairlead("run", "delete", "first")


def test_a_run_on_an_existing_volume(cluster, fairlead):
    shown = fairlead(*submit("one", "--volume", "team"), code=2)
    assert "namespace fairlead has no PersistentVolumeClaim team: create it" in shown.stderr
    assert of_run(cluster, "one") == {}, "the name is free again"
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "team", "labels": {}}}
    cluster.objects["persistentvolumeclaims", "fairlead", "team"] = claim
    fairlead(*submit("one", "--volume", "team"))
    shown = fairlead("run", "delete", "one", "--volumes", "--yes").stdout
    assert list(named(cluster, "persistentvolumeclaims")) == ["team"], "it is not the run's"
    assert "nothing is kept" in shown


def test_missing_right_is_named_and_the_two_roles_suffice(cluster, fairlead):
    operator, runs = (
        yaml.safe_load((ROLES / name).read_text())["rules"] for name in ("role.yaml", "runs.yaml")
    )
    cluster.rules = operator
    shown = fairlead(*submit("one"), code=2)
    assert 'User "tester" cannot get resource "secrets"' in shown.stderr
    assert "k8s/components/operator-role" in shown.stderr
    cluster.rules = operator + runs
    cluster.asked.clear()
    fairlead(*submit("one"))
    fairlead("run", "list")
    fairlead("run", "delete", "one", "--volumes", "--yes")
    granted = {(verb, "", "secrets") for rule in runs for verb in rule["verbs"]}
    assert granted <= cluster.asked, "no right that is not used"
    cluster.rules = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb != "list"]} for rule in operator
    ]
    shown = fairlead("run", "list", code=2)
    assert 'cannot list resource "statefulsets"' in shown.stderr


def test_quota_conflict_and_slow_api_are_named(cluster, fairlead):
    cluster.quota["persistentvolumeclaims"] = "storage"
    shown = fairlead(*submit("one"), code=2)
    assert "exceeded quota: storage" in shown.stderr
    assert "Ask for a higher quota, or request less" in shown.stderr
    cluster.quota.clear()
    fairlead("up", "run.toml", "--overlay", "kind", "--run", "one")
    named(cluster, "services")["one-policy"]["spec"]["clusterIP"] = "10.0.0.1"
    cluster.owners["services", "fairlead", "one-policy"][".spec.clusterIP"] = "kubectl-edit"
    shown = fairlead("up", "run.toml", "--overlay", "kind", "--run", "one", code=2)
    assert 'apply Service one-policy in namespace fairlead: conflict with "kubectl-edit"' in shown.stderr
    for verb in (submit("two"), ("run", "list"), ("run", "delete", "one")):
        cluster.faults.append(("GET /api/v1/namespaces/fairlead/persistentvolumeclaims.*", "hang"))
        shown = fairlead(*verb, "--request-seconds", "1", code=1)
        assert "did not answer within 1 s (" in shown.stderr
        cluster.faults.clear()
    assert named(cluster, "deployments")["one-policy"]


def test_file_of_a_run_names_it(cluster, fairlead, tmp_path: Path):
    fairlead("run", "submit", "run.toml", "--overlay", "kind")
    assert named(cluster, "deployments")["parcels-policy"]
    (trainer,) = [one for name, one in named(cluster, "configmaps").items() if "run-trainer" in name]
    assert 'name = "parcels"' in trainer["data"]["run.toml"]
