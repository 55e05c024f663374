"""`fairlead k8s` against a stand-in for a cluster's API: what it brings up, shows, changes and takes down."""

from __future__ import annotations

import base64
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fairlead.cli import k8s as verbs
from fairlead.cli.main import app
from fairlead.k8s import apply
from tests import cluster_stand_in
from tests.cluster_controllers import CREATING, NO_NODE, READY, STARTS, crash_loop, ended
from tests.cluster_stand_in import KEDA, StandIn

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")

Fairlead = Callable[..., Any]
UP = ("up", "--overlay", "kind")
PROCESSES = {
    "files",
    "policy",
    "reward",
    "reference",
    "rollout-worker",
    "gateway",
    "trainer",
    "redis",
    "weights",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(verbs, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(apply, "_POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('name = "parcels"\n[ppo]\nupdates = 7\n')
    with cluster_stand_in.serving(tmp_path) as (state, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield state


@pytest.fixture
def fairlead() -> Fairlead:
    def call(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["k8s", *arguments], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result

    return call


def named(cluster: StandIn, plural: str, namespace: str = "fairlead") -> dict[str, dict]:
    return {key[2]: found for key, found in cluster.objects.items() if key[:2] == (plural, namespace)}


def changes(cluster: StandIn) -> list[str]:
    """The requests that change something, since the last time."""
    found = [line for line in cluster.requests if not line.startswith("GET")]
    cluster.requests.clear()
    return found


def test_up_makes_everything_and_waits_until_it_is_ready(cluster, fairlead):
    shown = fairlead(*UP, "run.toml", "--namespace", "mine", "--create-namespace", "--set", "ppo.updates=9")
    processes = named(cluster, "deployments", "mine") | named(cluster, "statefulsets", "mine")
    assert {*processes, *named(cluster, "jobs", "mine")} == PROCESSES
    (run,) = [
        found for name, found in named(cluster, "configmaps", "mine").items() if name.startswith("run-")
    ]
    assert tomllib.loads(run["data"]["run.toml"])["ppo"] == {"updates": 9}
    assert "made the Secret redis" in shown.stderr
    assert "policy 0/1 (ContainerCreating)" in shown.stderr
    assert "policy 0/1 (starts)" in shown.stderr
    assert set(shown.stdout.removeprefix("ready: ").replace(",", "").split()) == {*PROCESSES, "1"}
    secret = named(cluster, "secrets", "mine")["redis"]["data"]
    password = base64.b64decode(secret["password"]).decode()
    assert len(bytes.fromhex(password)) == 32
    assert password not in shown.output
    applied = [line.rsplit("/", 2)[1] for line in changes(cluster) if line.startswith("PATCH")][1:]
    assert applied.index("configmaps") < applied.index("deployments"), "what others need comes before them"


def test_secrets_that_a_person_makes_are_asked_for_before_anything_is_applied(cluster, fairlead):
    fairlead("up", "--overlay", "kind", "run.toml", "--create-namespace")
    changes(cluster)
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
    assert changes(cluster) == []
    fairlead(*secured)
    deployments = named(cluster, "deployments")
    volumes = deployments["reward"]["spec"]["template"]["spec"]["volumes"]
    mounted = {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    assert mounted == {"fairlead-keys", "fairlead-tls"}


def test_a_key_that_is_optional_is_asked_for_where_keys_are(cluster, fairlead):
    fairlead("up", "--overlay", "kind", "run.toml", "--create-namespace")
    fairlead(*UP, "run.toml", "--component", "weights-over-grpc")
    changes(cluster)
    for name in ("fairlead-api-key", "fairlead-keys"):
        cluster.objects["secrets", "fairlead", name] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
        }
    shown = fairlead(*UP, "run.toml", "--component", "weights-over-grpc", "--component", "keys", code=2)
    assert "has no Secret fairlead-weights-key: docs/security.md" in shown.stderr
    assert changes(cluster) == []


def test_up_again_changes_nothing_and_new_settings_replace_only_the_job(cluster, fairlead):
    fairlead(*UP, "run.toml")
    password = named(cluster, "secrets")["redis"]
    pods = set(named(cluster, "pods"))
    changes(cluster)
    fairlead(*UP, "run.toml")
    assert not [line for line in changes(cluster) if line.startswith("DELETE")]
    assert set(named(cluster, "pods")) == pods
    shown = fairlead(*UP, "run.toml", "--set", "ppo.updates=8")
    assert [line for line in changes(cluster) if line.startswith("DELETE")] == [
        "DELETE /apis/batch/v1/namespaces/fairlead/jobs/trainer"
    ]
    assert "goes on from the checkpoint" in shown.stderr
    same = {pod for pod in pods if pod.startswith(("redis", "files"))}
    assert set(named(cluster, "pods")) & pods == same, "who does not read the run's file goes on"
    assert named(cluster, "secrets")["redis"] == password


def test_a_stage_is_the_trainers_job_alone(cluster, fairlead):
    fairlead(*UP, "run.toml", "--stage", "files")
    assert set(named(cluster, "deployments")) == {"files"}
    assert named(cluster, "jobs") == {}
    cluster.controllers.scripts["trainer"] = [STARTS, READY, ended(0, "")]
    shown = fairlead(*UP, "run.toml", "--stage", "reward-model", "--until-done")
    assert "the trainer is done" in shown.stdout
    assert set(named(cluster, "deployments")) == {"files"}
    container = named(cluster, "jobs")["trainer"]["spec"]["template"]["spec"]["containers"][0]
    assert "trainer.reward_model" in container["args"]
    shown = fairlead(*UP, "run.toml", "--until-done")
    assert "replaced" in shown.stderr
    assert "policy 1" in shown.stderr


def test_the_trainers_end_is_the_commands_and_the_next_up_goes_on(cluster, fairlead):
    cluster.controllers.scripts["trainer"] = [STARTS, READY, ended(5, "first\nthe guard fired")]
    shown = fairlead(*UP, "run.toml", "--until-done", code=5)
    assert "error: trainer: exit code 5: the guard fired" in shown.stderr
    del cluster.controllers.scripts["trainer"]
    shown = fairlead(*UP, "run.toml")
    assert "trainer had failed" in shown.stderr
    assert "trainer 1" in shown.stdout


def test_a_mistake_ends_the_wait_and_is_tried_again_when_mended(cluster, fairlead):
    words = "policy: policy.path: got 'runs/none', allowed: a model"
    cluster.controllers.scripts["policy"] = [STARTS, crash_loop(2, words)]
    shown = fairlead(*UP, "run.toml", code=2)
    assert f"error: policy: {words}" in shown.stderr
    del cluster.controllers.scripts["policy"]
    shown = fairlead(*UP, "run.toml")
    assert "starts policy-pod-" in shown.stderr
    assert "policy 1" in shown.stdout


def test_what_is_waited_for_too_long_is_named(cluster, fairlead):
    cluster.controllers.scripts |= {"trainer": [NO_NODE], "reward": [crash_loop(1, "out of memory")]}
    shown = fairlead(*UP, "run.toml", "--timeout-seconds", "1", code=4)
    assert (
        "trainer 0/1 (has no node: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.)" in shown.stderr
    )
    assert "reward 0/1 (ended with 1 and is started again: out of memory)" in shown.stderr
    assert "policy" not in shown.stderr.splitlines()[-1]


def test_a_cluster_that_is_away_for_a_moment_is_waited_for(cluster, fairlead):
    cluster.controllers.scripts["redis"] = [CREATING] * 5 + [READY]
    cluster.faults += [("GET .*/statefulsets", 503), ("GET .*/statefulsets", 500)]
    shown = fairlead(*UP, "run.toml")
    assert "cannot do it now (list StatefulSet in namespace fairlead: 503" in shown.stderr
    assert shown.stdout.startswith("ready: ")


def test_status_shows_every_process_and_what_it_waits_for(cluster, fairlead):
    assert "nothing of a run" in fairlead("status").stdout
    pulling = {
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
        "ready": False,
    }
    cluster.controllers.scripts |= {"policy": [pulling], "trainer": [ended(3, "a newer one runs")]}
    fairlead(*UP, "run.toml", code=3)
    table = fairlead("status").stdout
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert set(rows) == PROCESSES
    assert "0/1" in rows["policy"]
    assert "ImagePullBackOff: no such image" in rows["policy"]
    assert "failed" in rows["trainer"]
    assert "a newer one runs" in rows["trainer"]


def test_scale_sets_numbers_and_refuses_what_is_one_or_is_scaled_by_keda(cluster, fairlead):
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
    assert named(cluster, "deployments")["reward"]["spec"]["replicas"] == 3, "nothing of it was done"
    assert "scaled by KEDA, from 1 to 16" in fairlead("scale", "rollout-worker=9", code=2).stderr
    assert "PROCESS=NUMBER" in fairlead("scale", "reward", code=2).stderr
    fairlead(*UP, "run.toml", "--component", "keda")
    assert named(cluster, "deployments")["reward"]["spec"]["replicas"] == 3, "up leaves the number alone"


def test_fields_of_others_are_taken_over_only_when_told_to(cluster, fairlead, tmp_path):
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
    assert ".spec.replicas. --force-conflicts takes these fields over" in shown.stderr
    fairlead("up", "run.toml", "--overlay", str(mine), "--force-conflicts")
    assert named(cluster, "deployments")["policy"]["spec"]["replicas"] == 2


def test_down_drains_in_order_and_keeps_what_cannot_be_made_again(cluster, fairlead):
    cluster.kinds |= KEDA
    fairlead(*UP, "run.toml", "--component", "keda")
    changes(cluster)
    shown = fairlead("down")
    order = [line.split("/")[-1] for line in changes(cluster)]
    assert order[:2] == ["rollout-worker", "trainer"]
    assert set(order[2:4]) == {"rollout-worker", "gateway"}
    assert set(order[4:9]) == {"policy", "reward", "reference", "files", "weights"}
    assert order[9] == "redis"
    left = {(key[0], key[2]) for key in cluster.objects}
    assert left == {("persistentvolumeclaims", "fairlead"), ("secrets", "redis")}
    assert "left: PersistentVolumeClaim fairlead, Secret redis" in shown.stdout
    fairlead(*UP, "run.toml")
    assert CliRunner().invoke(app, ["k8s", "down", "--purge"], input="n\n").exit_code == 1
    assert named(cluster, "deployments")
    assert "nothing is left" in fairlead("down", "--purge", "--yes").stdout
    assert cluster.objects == {}
