"""`logs`, `doctor` and `fetch-model` against a stand-in for a cluster's API."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from fairlead.cli import k8s_models
from fairlead.k8s import fetch
from tests.cluster_controllers import CREATING, READY, ended
from tests.cluster_stand_in import JOB_SETS, KEDA, LEADER_WORKER_SETS, named, writes
from tests.kubernetes_schemas import mistake
from tests.rendered import rendered

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")

UP = ("up", "run.toml", "--overlay", "kind")
PAGE = Path(__file__).parents[4] / "docs" / "kubernetes.md"
YAML = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_logs_have_the_last_lines_of_every_pod(cluster, fairlead):
    fairlead(*UP, "--stage", "files")
    (pod,) = named(cluster, "pods")
    cluster.logs[pod] = "one\ntwo\nthree\n"
    assert fairlead("logs", "files", "--lines", "2").stdout == "two\nthree\n"
    shown = fairlead("logs", "files", "--previous")
    assert (shown.stdout, "previous terminated container not found" in shown.stderr) == ("", True)
    assert "got 'policy', allowed: one of files" in fairlead("logs", "policy", code=2).stderr


def test_doctor_names_what_is_missing_and_changes_nothing(cluster, fairlead):
    cluster.kinds |= KEDA
    cluster.rules = [{"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get", "list"]}]
    cluster.outside |= {
        "/apis/storage.k8s.io/v1/storageclasses": {"items": [{"metadata": {"name": "slow"}}]},
        "/api/v1/nodes": {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "8"}}}, {"status": {}}]},
    }
    shown = fairlead("doctor", code=2)
    for line in (
        "ok        cluster: Kubernetes v1.36.2 at https://127.0.0.1",
        "missing   rights: get, list, create, patch, delete of configmaps: see k8s/components/operator-role",
        "missing   rights: create of pods/exec",
        "missing   storage class: none is the default: set storageClassName to one of slow",
        "ok        GPUs: 8 on 1 of 2 nodes",
        "ok        KEDA: installed",
        "optional  JobSet: not installed; only needed for the component jobset",
    ):
        assert line in shown.stdout
    assert "lacks what every run needs: rights, storage class" in shown.stderr
    assert "of secrets" in shown.stdout
    cluster.rules = None
    default = {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    cluster.outside["/apis/storage.k8s.io/v1/storageclasses"]["items"].append({"metadata": default})
    assert "ok        rights: those of the role fairlead-operator" in fairlead("doctor").stdout
    assert writes(cluster) == []


def test_doctor_names_a_quota_that_refuses_every_pod(cluster, fairlead):
    cluster.outside |= {"/apis/storage.k8s.io/v1/storageclasses": {}, "/api/v1/nodes": {}}
    assert "ok        quotas: none in the namespace" in fairlead("doctor", code=2).stdout
    quota = {"metadata": {"name": "team"}, "spec": {"hard": {"requests.cpu": "8", "limits.memory": "64Gi"}}}
    cluster.objects["resourcequotas", "fairlead", "team"] = quota
    assert "ok        quotas: pods set what team demands" in fairlead("doctor", code=2).stdout
    quota["spec"]["hard"]["limits.cpu"] = "96"
    shown = fairlead("doctor", code=2)
    assert (
        "missing   quotas: team demands limits.cpu, which pods do not set: create a LimitRange"
        in shown.stdout
    )
    assert "lacks what every run needs: storage class, quotas" in shown.stderr
    (example,) = [block for block in YAML.findall(PAGE.read_text()) if "LimitRange" in block]
    cluster.objects["limitranges", "fairlead", "cpu"] = yaml.safe_load(example)
    assert "ok        quotas: pods set what team demands" in fairlead("doctor", code=2).stdout
    cluster.rules = [{"apiGroups": [""], "resources": ["namespaces", "nodes"], "verbs": ["get"]}]
    assert "unknown   quotas: not allowed to list" in fairlead("doctor", code=2).stdout


def test_fetch_model_runs_a_job_once_and_up_does_not_delete_it(cluster, fairlead, monkeypatch):
    monkeypatch.setattr(k8s_models, "_POLL_SECONDS", 0.01)
    asked = ("fetch-model", "org/name", "--overlay", "kind")
    assert "has no volume fairlead: create it with `up --stage files`" in fairlead(*asked, code=2).stderr
    fairlead(*UP, "--stage", "files")
    cluster.controllers.scripts["fetch-model"] = [CREATING, READY, ended(0, "")]
    shown = fairlead(*asked, "--revision", "abc", "--token")
    assert shown.stdout == "/fairlead/models/name has org/name; set the path 'models/name'\n"
    job = named(cluster, "jobs")["fetch-model"]
    assert mistake({key: job[key] for key in ("apiVersion", "kind", "metadata", "spec")}) == ""
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].startswith("localhost/fairlead-model")
    assert {one["name"] for one in container["env"]} >= {"HF_TOKEN"}
    fairlead(*UP, "--stage", "files")
    assert "fetch-model" in named(cluster, "jobs")
    cluster.controllers.scripts["fetch-model"] = [ended(1, "401 Client Error: gated repo")]
    shown = fairlead("fetch-model", "org/gated", "--overlay", "kind", code=1)
    assert "fetch-model: exit code 1: 401 Client Error: gated repo" in shown.stderr
    for wrong, flags in (("name", ()), ("org/name", ("--to", "../up"))):
        assert "allowed: " in fairlead("fetch-model", wrong, *flags, "--overlay", "kind", code=2).stderr


def test_script_of_fetch_model_leaves_a_complete_folder_or_none(tmp_path: Path):
    objects = rendered("kind")
    job = fetch.job(objects, "org/name", revision="main", folder="models/name", has_token=False)
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "hf"

    def run(body: str) -> int:
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        environment = {"PATH": f"{programs}:/usr/bin:/bin"}
        return subprocess.run(arguments, cwd=tmp_path, env=environment, check=False).returncode

    record = f'echo "$@" >> {tmp_path}/calls; mkdir -p "$6/.cache"; echo x > "$6/config.json"'
    assert run(f"{record}; exit 1") == 1
    assert not (tmp_path / "models" / "name").exists()
    assert run(record) == 0
    assert [path.name for path in (tmp_path / "models" / "name").iterdir()] == ["config.json"]
    assert run("exit 1") == 0, "it is there already"
    last = (tmp_path / "calls").read_text().splitlines()[-1].split()
    assert last[:6] == ["download", "org/name", "--revision", "main", "--local-dir", "models/name.part"]
    assert "--exclude=*.bin" in last


@pytest.mark.parametrize("components", [("kueue",), ("jobset", "kueue")])
def test_status_shows_that_the_trainer_waits_in_a_queue(cluster, fairlead, components):
    cluster.kinds |= JOB_SETS
    flags = [flag for name in components for flag in ("--component", name)]
    cluster.controllers.scripts["trainer"] = [{"pending": True}]
    fairlead(*UP, *flags, "--stage", "sft", "--timeout-seconds", "0.5", code=4)
    plural = "jobsets" if "jobset" in components else "jobs"
    # What the webhook of Kueue does when the object is created.
    named(cluster, plural)["trainer"]["spec"]["suspend"] = True
    shown = fairlead("status").stdout
    assert "suspended: waits in the queue fairlead of Kueue" in shown


def test_policy_on_several_nodes_is_shown_scaled_and_deleted(cluster, fairlead):
    cluster.kinds |= LEADER_WORKER_SETS
    nodes = ("--set", "policy.engine=vllm", "--set", "policy.vllm.nnodes=2")
    size = ("--set", "policy.vllm.tensor_parallel_size=2", "--registry", "registry.test/team")
    components = ("--component", "vllm", "--component", "policy-nodes")
    fairlead(*UP, *components, *nodes, *size, "--timeout-seconds", "0.5", code=4)
    assert "policy" not in named(cluster, "deployments")
    group = named(cluster, "leaderworkersets")["policy"]
    assert "policy          0/1" in fairlead("status").stdout
    group["status"] = {"replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}
    assert "policy          1/1" in fairlead("status").stdout
    fairlead("scale", "policy=3", "reward=2")
    assert group["spec"]["replicas"] == 3
    assert "policy          1/3" in fairlead("status").stdout
    fairlead("down")
    assert named(cluster, "leaderworkersets") == {}
