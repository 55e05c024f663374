"""The verbs of `fairlead k8s` against a stand-in for a cluster's API: up, status, scale and down."""

from __future__ import annotations

import base64
import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fairlead.cli import k8s as verbs
from fairlead.cli.main import app
from fairlead.k8s.settings import READS
from tests.cluster_controllers import CREATING, NO_NODE, READY, STARTS, crash_loop, ended
from tests.cluster_stand_in import JOB_SETS, KEDA, named, writes

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")

UP = ("up", "--overlay", "kind")
PROCESSES = {"files", "redis", *READS} - {"feedback"}


def test_up_creates_every_object_and_waits_until_ready(cluster, fairlead):
    shown = fairlead(*UP, "run.toml", "--namespace", "mine", "--create-namespace", "--set", "ppo.updates=9")
    processes = named(cluster, "deployments", "mine") | named(cluster, "statefulsets", "mine")
    assert {*processes, *named(cluster, "jobs", "mine")} == PROCESSES
    (run,) = [
        found
        for name, found in named(cluster, "configmaps", "mine").items()
        if name.startswith("run-trainer-")
    ]
    assert tomllib.loads(run["data"]["run.toml"])["ppo"] == {"updates": 9}
    assert "created the Secret redis" in shown.stderr
    assert re.search(r"waiting for .*policy 0/1.* \(ContainerCreating\)", shown.stderr)
    assert re.search(r"waiting for .*policy 0/1.* \(starting\)", shown.stderr)
    assert set(shown.stdout.removeprefix("ready: ").replace(",", "").split()) == {*PROCESSES, "1"}
    secret = named(cluster, "secrets", "mine")["redis"]["data"]
    password = base64.b64decode(secret["password"]).decode()
    assert len(bytes.fromhex(password)) == 32
    assert password not in shown.output
    applied = [line.rsplit("/", 2)[1] for line in writes(cluster) if line.startswith("PATCH")][1:]
    assert applied.index("configmaps") < applied.index("deployments"), "dependencies are applied first"


def test_missing_secrets_are_reported_before_anything_is_applied(cluster, fairlead):
    fairlead("up", "--overlay", "kind", "run.toml", "--create-namespace")
    writes(cluster)
    secured = (*UP, "run.toml", "--component", "keys", "--component", "tls")
    shown = fairlead(*secured, code=2)
    for name in ("fairlead-api-key", "fairlead-keys", "fairlead-tls"):
        assert name in shown.stderr
        cluster.objects["secrets", "fairlead", name] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
        }
    assert "docs/security.md" in shown.stderr
    assert writes(cluster) == []
    fairlead(*secured)
    deployments = named(cluster, "deployments")
    volumes = deployments["reward"]["spec"]["template"]["spec"]["volumes"]
    mounted = {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    assert mounted == {"fairlead-keys", "fairlead-tls"}


def test_secret_of_a_certificate_need_not_exist_yet(cluster, fairlead):
    cluster.kinds |= {"cert-manager.io/v1": {"Certificate": "certificates"}}
    fairlead(*UP, "run.toml", "--component", "tls", "--component", "tls-certificate", "--create-namespace")
    assert set(named(cluster, "certificates")) == {"fairlead-tls"}
    fairlead(*UP, "run.toml")
    assert not named(cluster, "certificates"), "it is deleted with its component"


def test_optional_key_is_required_where_services_require_keys(cluster, fairlead):
    fairlead("up", "--overlay", "kind", "run.toml", "--create-namespace")
    fairlead(*UP, "run.toml", "--component", "weights-over-grpc")
    writes(cluster)
    for name in ("fairlead-api-key", "fairlead-keys"):
        cluster.objects["secrets", "fairlead", name] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
        }
    shown = fairlead(*UP, "run.toml", "--component", "weights-over-grpc", "--component", "keys", code=2)
    assert "has no Secret fairlead-weights-key: create it as described in docs/security.md" in shown.stderr
    assert writes(cluster) == []


def test_feedback_service_needs_keys_and_runs_without_the_other_services(cluster, fairlead):
    fairlead("up", "--overlay", "kind", "run.toml", "--create-namespace", "--stage", "files")
    asked = (*UP, "run.toml", "--stage", "files", "--component", "feedback")
    asked += ("--set", "feedback.origin=https://people.test")
    assert "has no Secret fairlead-keys" in fairlead(*asked, code=2).stderr
    cluster.objects["secrets", "fairlead", "fairlead-keys"] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "fairlead-keys"},
    }
    shown = fairlead(*asked)
    assert set(shown.stdout.removeprefix("ready: ").replace(",", "").split()) == {"feedback", "files", "1"}
    assert named(cluster, "ingresses")["feedback"]["spec"]["rules"][0]["host"] == "people.test"
    fairlead("down")
    assert not named(cluster, "ingresses")


def test_second_up_changes_nothing_and_new_settings_replace_only_the_job(cluster, fairlead):
    fairlead(*UP, "run.toml")
    password = named(cluster, "secrets")["redis"]
    pods = set(named(cluster, "pods"))
    writes(cluster)
    fairlead(*UP, "run.toml")
    assert not [line for line in writes(cluster) if line.startswith("DELETE")]
    assert set(named(cluster, "pods")) == pods
    shown = fairlead(*UP, "run.toml", "--set", "ppo.updates=8")
    job, settings = [line for line in writes(cluster) if line.startswith("DELETE")]
    assert job == "DELETE /apis/batch/v1/namespaces/fairlead/jobs/trainer"
    assert "/configmaps/run-trainer-" in settings, "no pod uses the earlier settings"
    assert "restarting trainer: ppo.updates 7 → 8\n" in shown.stderr
    assert "continues from the checkpoint" in shown.stderr
    same = {pod for pod in pods if not pod.startswith("trainer")}
    assert set(named(cluster, "pods")) & pods == same, "pods that do not read the setting keep running"
    assert named(cluster, "secrets")["redis"] == password


def test_trainer_as_a_job_set_replaces_its_job_and_is_replaced_when_settings_change(cluster, fairlead):
    fairlead(*UP, "run.toml")
    job_set = (*UP, "run.toml", "--component", "jobset")
    assert "install the extension that defines it" in fairlead(*job_set, code=2).stderr
    assert named(cluster, "jobs")
    cluster.kinds |= JOB_SETS
    shown = fairlead(*job_set)
    assert "trainer was a Job: a JobSet replaces it" in shown.stderr
    assert "trainer 1" in shown.stdout
    assert (named(cluster, "jobs"), list(named(cluster, "jobsets"))) == ({}, ["trainer"])
    cluster.controllers.scripts["trainer"] = [CREATING, READY, ended(2, "ConfigError: sft.epochs")]
    shown = fairlead(*job_set, "--set", "ppo.updates=8", "--until-done", code=2)
    assert "trainer has new settings: a new JobSet replaces it" in shown.stderr
    assert "ConfigError: sft.epochs" in shown.stderr
    cluster.controllers.scripts["trainer"] = [READY, ended(0, "")]
    shown = fairlead(*job_set, "--set", "ppo.updates=8", "--until-done")
    assert "trainer had failed: a new JobSet continues" in shown.stderr
    fairlead("down")
    assert named(cluster, "jobsets") == named(cluster, "pods") == {}


def test_stage_without_services_runs_only_the_trainer_job(cluster, fairlead):
    fairlead(*UP, "run.toml", "--stage", "files")
    assert set(named(cluster, "deployments")) == {"files"}
    assert named(cluster, "jobs") == {}
    cluster.controllers.scripts["trainer"] = [STARTS, READY, ended(0, "")]
    shown = fairlead(*UP, "run.toml", "--stage", "reward-model", "--until-done")
    assert "the trainer has finished" in shown.stdout
    assert set(named(cluster, "deployments")) == {"files"}
    container = named(cluster, "jobs")["trainer"]["spec"]["template"]["spec"]["containers"][0]
    assert "trainer.reward_model" in container["args"]
    shown = fairlead(*UP, "run.toml", "--until-done")
    assert "trainer gets the stage ppo: a new Job replaces that of reward-model" in shown.stderr
    assert "policy 1" in shown.stderr


def test_until_done_exits_with_the_trainers_code_and_next_up_continues(cluster, fairlead):
    cluster.controllers.scripts["trainer"] = [STARTS, READY, ended(5, "first\nthe guard fired")]
    shown = fairlead(*UP, "run.toml", "--until-done", code=5)
    assert "error: trainer: exit code 5: the guard fired" in shown.stderr
    del cluster.controllers.scripts["trainer"]
    shown = fairlead(*UP, "run.toml")
    assert "trainer had failed" in shown.stderr
    assert "trainer 1" in shown.stdout


def test_configuration_mistake_ends_the_wait_and_next_up_restarts_the_pod(cluster, fairlead):
    message = "policy: policy.path: got 'runs/none', allowed: a model"
    cluster.controllers.scripts["policy"] = [STARTS, crash_loop(2, message)]
    shown = fairlead(*UP, "run.toml", code=2)
    assert f"error: policy: {message}" in shown.stderr
    del cluster.controllers.scripts["policy"]
    shown = fairlead(*UP, "run.toml")
    assert "restarting policy-pod-" in shown.stderr
    assert "policy 1" in shown.stdout


def test_timeout_names_the_processes_that_are_not_ready(cluster, fairlead):
    cluster.controllers.scripts |= {"trainer": [NO_NODE], "reward": [crash_loop(1, "out of memory")]}
    shown = fairlead(*UP, "run.toml", "--timeout-seconds", "1", code=4)
    assert "trainer 0/1 (not scheduled: 1 Insufficient nvidia.com/gpu)" in shown.stderr
    assert "reward 0/1 (ended with exit code 1, restarting: out of memory)" in shown.stderr
    assert "policy" not in shown.stderr.splitlines()[-1]


def test_wait_survives_a_cluster_that_is_briefly_unavailable(cluster, fairlead):
    cluster.controllers.scripts["redis"] = [CREATING] * 5 + [READY]
    cluster.faults += [("GET .*/events", 503), ("GET .*/events", 500)]
    shown = fairlead(*UP, "run.toml")
    assert "is unavailable (list Event in namespace fairlead: 503" in shown.stderr
    assert shown.stdout.startswith("ready: ")


def test_status_shows_every_process_and_what_it_waits_for(cluster, fairlead):
    assert "namespace fairlead has no run" in fairlead("status").stdout
    pulling = {
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
        "ready": False,
    }
    cluster.controllers.scripts |= {"policy": [pulling], "trainer": [ended(3, "a newer one runs")]}
    fairlead(*UP, "run.toml", code=3)
    table = fairlead("status").stdout
    table, notes = table.split("\n\n")
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert set(rows) == PROCESSES
    assert "0/1" in rows["policy"]
    assert "failed" in rows["trainer"]
    assert "policy (ImagePullBackOff: no such image)" in notes
    assert "a newer one runs" in notes


def test_scale_sets_replicas_and_refuses_the_trainer_and_keda(cluster, fairlead):
    cluster.kinds |= KEDA
    fairlead(*UP, "run.toml", "--component", "keda")
    fairlead("scale", "reward=3", "policy=2")
    assert {name: found["spec"].get("replicas") for name, found in named(cluster, "deployments").items()} == {
        "files": None,
        "weights": None,
        "policy": 2,
        "reward": 3,
        "reference": None,
        "rollout-worker": None,
        "gateway": None,
    }
    assert len([pod for pod in named(cluster, "pods") if pod.startswith("reward")]) == 3
    shown = fairlead("scale", "reward=1", "trainer=2", code=2)
    assert "got 'trainer', allowed: one of gateway, policy, reference, reward, rollout-worker" in shown.stderr
    assert named(cluster, "deployments")["reward"]["spec"]["replicas"] == 3, "nothing was changed"
    assert "scaled by KEDA, from 1 to 16" in fairlead("scale", "rollout-worker=9", code=2).stderr
    assert "PROCESS=NUMBER" in fairlead("scale", "reward", code=2).stderr
    fairlead(*UP, "run.toml", "--component", "keda")
    assert named(cluster, "deployments")["reward"]["spec"]["replicas"] == 3, "up does not change the number"


def test_fields_of_other_owners_are_taken_over_only_with_the_flag(cluster, fairlead, tmp_path):
    base = Path(verbs.__file__).parents[2] / "k8s" / "overlays" / "kind"
    overlay = {
        "resources": [os.path.relpath(base, (tmp_path / "mine").resolve())],
        "replicas": [{"name": "policy", "count": 2}],
    }
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    fairlead("up", "run.toml", "--overlay", str(mine))
    assert named(cluster, "deployments")["policy"]["spec"]["replicas"] == 2
    fairlead("scale", "policy=4")
    shown = fairlead("up", "run.toml", "--overlay", str(mine), code=2)
    assert 'apply Deployment policy in namespace fairlead: conflict with "fairlead by scale"' in shown.stderr
    assert ".spec.replicas. Take over these fields with --force-conflicts" in shown.stderr
    fairlead("up", "run.toml", "--overlay", str(mine), "--force-conflicts")
    assert named(cluster, "deployments")["policy"]["spec"]["replicas"] == 2


def test_down_drains_in_order_and_keeps_volumes_and_passwords(cluster, fairlead):
    cluster.kinds |= KEDA
    fairlead(*UP, "run.toml", "--component", "keda")
    writes(cluster)
    shown = fairlead("down")
    order = [line.split("/")[-1] for line in writes(cluster)]
    assert order[:2] == ["rollout-worker", "trainer"]
    assert set(order[2:4]) == {"rollout-worker", "gateway"}
    assert set(order[4:9]) == {"policy", "reward", "reference", "files", "weights"}
    assert order[9] == "redis"
    left = {(key[0], key[2]) for key in cluster.objects}
    assert left == {("persistentvolumeclaims", "fairlead"), ("secrets", "redis")}
    assert "kept: PersistentVolumeClaim fairlead, Secret redis" in shown.stdout
    fairlead(*UP, "run.toml")
    assert CliRunner().invoke(app, ["k8s", "down", "--purge"], input="n\n").exit_code == 1
    assert named(cluster, "deployments")
    assert "nothing is kept" in fairlead("down", "--purge", "--yes").stdout
    assert cluster.objects == {}
