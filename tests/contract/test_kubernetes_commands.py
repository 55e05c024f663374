"""The commands of docs/kubernetes.md and docs/gitops.md: each is run here, or the page names it as not run.

`fairlead k8s` is run in the order of the pages against a stand-in for a cluster's API, and
`kubectl kustomize` and `kubectl create` (as a dry run) without a cluster.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairlead.cli import k8s as verbs
from fairlead.cli import k8s_look, k8s_models
from fairlead.cli.main import app
from fairlead.k8s import changes
from tests import cluster_stand_in
from tests.cluster_controllers import READY, ended
from tests.cluster_stand_in import JOB_SETS, KEDA, StandIn
from tests.contract.test_kubernetes_page import COMMANDS, PAGE, ROOT
from tests.rendered import needs_kubectl
from tests.waiting import eventually

NOT_RUN = set(re.findall(r"`([^`]+)`", PAGE.partition("**Not run by a test**")[2].partition("\n\n")[0]))
"""Beginnings of commands that the page names."""
OFFLINE = re.compile(r"kubectl (kustomize|create (?!job))")
ELSEWHERE = ("fairlead quickstart", "fairlead report", "fairlead plan")
"""Run by the tests of docs/tutorial.md, and of the sizes on the page (tests/unit/fairlead/planning)."""
SECRETS = {
    *("fairlead-api-key", "fairlead-feedback-store", "fairlead-hub", "fairlead-keys", "fairlead-redis"),
    *("fairlead-registry", "fairlead-tls", "fairlead-weights-key"),
}
MONITORING = {
    "monitoring.coreos.com/v1": {"PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"},
    "gateway.networking.k8s.io/v1": {"HTTPRoute": "httproutes"},
    "cert-manager.io/v1": {"Certificate": "certificates"},
}
OURS = list(dict.fromkeys(line for line in COMMANDS if line.startswith("fairlead k8s ")))


def test_every_command_is_run_or_named_as_not_run():
    assert len(NOT_RUN) > 5
    left = [
        line
        for line in COMMANDS
        if " " in line  # Else a file to which a command writes.
        and line not in OURS
        and not line.startswith((*ELSEWHERE, "#"))
        and not OFFLINE.match(line)
        and not any(line.startswith(f"{beginning} ") for beginning in NOT_RUN)
    ]
    assert left == []
    used = {one for one in NOT_RUN if any(line.startswith(f"{one} ") for line in COMMANDS)}
    assert used == NOT_RUN, "named although there is no such command"


@needs_kubectl
@pytest.mark.parametrize("line", sorted({line for line in COMMANDS if OFFLINE.match(line)}))
def test_commands_of_kubectl_that_need_no_cluster(line, tmp_path):
    (tmp_path / "ca.crt").write_text("certificate")
    words = shlex.split(re.sub(r'"?\$(\w+|\([^)]*\))"?', "secret", line))
    words = [str(ROOT / word) if word.startswith("k8s/") else word for word in words]
    if words[1] == "create":
        words += ["--dry-run=client", "--output=name"]
    environment = os.environ | {"KUBECONFIG": os.devnull}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch) -> Iterator[StandIn]:
    for module in (verbs, k8s_look, k8s_models, changes):
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "run.toml").write_text('name = "quickstart"\n')
    with cluster_stand_in.serving(tmp_path) as (state, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        state.kinds |= KEDA | JOB_SETS | MONITORING
        state.outside |= {
            "/apis/storage.k8s.io/v1/storageclasses": default_class(),
            "/api/v1/nodes": {"items": []},
        }
        for name in SECRETS:
            state.objects["secrets", "fairlead", name] = {"metadata": {"name": name, "labels": {}}}
        yield state


def default_class() -> dict[str, object]:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
    return {"items": [{"metadata": {"name": "shared", "annotations": annotations}}]}


def end_soon(cluster: StandIn, name: str) -> None:
    """Let a process end that a command follows: its logs end, and it is deleted unless it is a Job."""
    for kind, namespace, pod in list(cluster.objects):
        if kind == "pods" and pod.startswith(f"{name}-pod-"):
            cluster.ended.add(pod)
            cluster.objects[kind, namespace, pod]["script"] = [READY, ended(0, "")]

    def delete() -> None:
        log = re.compile(rf"GET .*/pods/{name}-pod-\d+/log")
        eventually(lambda: any(log.fullmatch(line) for line in list(cluster.requests)), seconds=300)
        with cluster.lock:
            for key in list(cluster.objects):
                if key == owner or (key[0] == "pods" and key[2].startswith(f"{name}-pod-")):
                    del cluster.objects[key]

    owner = ("deployments", "fairlead", name)
    if owner in cluster.objects:
        threading.Thread(target=delete, daemon=True).start()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_kubectl
def test_commands_of_fairlead_run_in_the_order_of_the_pages(cluster):
    assert len(OURS) > 30
    runner = CliRunner()
    for line in OURS:
        words = shlex.split(line)[1:]
        cluster.requests.clear()
        if "--follow" in words:
            run = f"{words[words.index('--run') + 1]}-" if "--run" in words else ""
            end_soon(cluster, f"{run}{words[words.index('logs') + 1]}")
        ends = [READY, ended(0, "")]
        cluster.controllers.scripts = {"fetch-model": ends} | (
            {"trainer": ends} if "--until-done" in words else {}
        )
        result = runner.invoke(app, words, env={"COLUMNS": "200"})
        assert result.exit_code == 0, f"{line}\n{result.output}"
