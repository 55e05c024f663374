"""Errors of `fairlead k8s`: a cluster that refuses, fails or is unreachable yields one line with advice."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import trustme
import yaml
from typer.testing import CliRunner

from fairlead.cli import k8s as verbs
from fairlead.cli.main import app
from fairlead.k8s import manifests
from tests import cluster_stand_in
from tests.cluster_stand_in import TOKEN, configuration
from tests.rendered import COMPONENTS

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")

UP = ("up", "--overlay", "kind")
DEPLOYMENTS = "/apis/apps/v1/namespaces/fairlead/deployments"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(verbs, "_POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    with cluster_stand_in.serving(tmp_path) as (state, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield state


def error(*arguments: str) -> tuple[int, str]:
    """Run a verb that fails; return its exit code and its error line."""
    result = CliRunner().invoke(app, ["k8s", *arguments])
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    return result.exit_code, lines[0]


def port_of(kubeconfig: str) -> int:
    text = yaml.safe_load(Path(kubeconfig).read_text())
    return int(text["clusters"][0]["cluster"]["server"].rpartition(":")[2])


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (
            (f"PATCH {DEPLOYMENTS}/policy", 403),
            2,
            ["no permission to apply Deployment policy", "role that has it"],
        ),
        (
            (f"PATCH {DEPLOYMENTS}/policy", 409),
            2,
            ["apply Deployment policy", "refused the request with 409"],
        ),
        (
            (f"PATCH {DEPLOYMENTS}/policy", 422),
            2,
            ["apply Deployment policy", "refused the request with 422"],
        ),
        ((f"PATCH {DEPLOYMENTS}/policy", 500), 1, ["is unavailable", "500 as the test wants it"]),
        ((f"PATCH {DEPLOYMENTS}/policy", 429), 1, ["is unavailable"]),
        (
            (f"PATCH {DEPLOYMENTS}/policy", "hang"),
            1,
            ["did not answer within 1 s (apply Deployment policy)"],
        ),
        (("GET /api/v1/namespaces/fairlead", 401), 2, ["rejected the credentials", "log in again"]),
        (("GET /apis/apps/v1", "hang"), 1, ["did not answer within 1 s (discover apps/v1)"]),
    ],
)
def test_failed_request_gives_exit_code_and_advice(cluster, fault, code, says):
    cluster.faults.append(fault)
    timeout = ("--request-seconds", "1") if fault[1] == "hang" else ()
    found, line = error(*UP, *timeout)
    assert found == code, line
    assert [text for text in says if text not in line] == []


def test_unknown_token_is_rejected(cluster, tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(kubeconfig.read_text().replace(TOKEN, "another"))
    assert error("status") == (2, error("status")[1])
    assert "(401): log in again, or use another --context" in error("status")[1]


def test_missing_namespace_is_refused_without_a_change(cluster):
    code, line = error(*UP, "--namespace", "elsewhere")
    assert (code, "no namespace elsewhere: create it with --create-namespace" in line) == (2, True)
    assert not [request for request in cluster.requests if not request.startswith("GET")]


def test_unknown_kind_is_reported_before_anything_is_applied(cluster):
    code, line = error(*UP, "--component", "monitoring")
    assert code == 2
    assert "does not know the kind PodMonitor (monitoring.coreos.com/v1): install the extension" in line
    applied = [request for request in cluster.requests if request.startswith("PATCH")]
    assert applied == ["PATCH /api/v1/namespaces/fairlead/secrets/redis"]


def test_secret_without_password_is_refused(cluster):
    cluster.objects["secrets", "fairlead", "redis"] = {
        "metadata": {"name": "redis"},
        "data": {"other": "eA=="},
    }
    code, line = error(*UP)
    assert code == 2
    assert "the Secret redis of namespace fairlead has no key `password`" in line


def test_unreachable_cluster_is_reported(cluster, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        kubeconfig = tmp_path / "elsewhere"
        kubeconfig.write_text(
            yaml.safe_dump(configuration(probe.getsockname()[1], tmp_path / "ca.pem", TOKEN))
        )
        code, line = error("status", "--kubeconfig", str(kubeconfig))
    assert code == 1
    assert "cannot be reached (read namespace fairlead: " in line
    assert "Connection refused): check that it runs" in line


def test_untrusted_certificate_is_reported(cluster, tmp_path):
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    code, line = error("status")
    assert code == 2
    assert "the kubeconfig does not trust the certificate of the cluster" in line


def test_missing_or_broken_kubeconfig_and_unknown_context(cluster, tmp_path):
    assert error("status", "--kubeconfig", "none.yaml")[0] == 2
    broken = tmp_path / "broken"
    broken.write_text("{")
    code, line = error("status", "--kubeconfig", str(broken))
    assert code == 2
    assert f"error: kubeconfig {broken}: got 'while parsing" in line
    code, line = error("status", "--context", "production")
    assert code == 2
    assert "Expected object with name production" in line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--overlay", "none"], "overlay: got 'none', allowed: one of gpu, kind, large, or a folder"),
        (
            ["--overlay", "kind", "--component", "none"],
            f"got 'none', allowed: one of {', '.join(COMPONENTS)}, or a folder",
        ),
        (["--overlay", "gpu"], "allowed: an image with a registry: --registry"),
        (
            ["--overlay", "kind", "--stage", "dpo"],
            "allowed: one of files, sft, reward-model, preference, ppo",
        ),
        (["--overlay", "kind", "--set", "ppo.update=1"], "did you mean `ppo.updates`?"),
        (["--overlay", "kind", "--component", "keda", "--component", "keda"], "component: got 'keda twice'"),
        (["--overlay", "gpu", "--component", "gpu"], "component: got 'gpu', allowed: one that the overlay"),
        (["--overlay", "large", "--component", "vllm"], "component: got 'vllm', allowed: one that the"),
        (["--overlay", "kind", "-n", "Team A"], "namespace: got 'Team A', allowed: 1 to 63 lower-case"),
        (
            ["--overlay", "gpu", "--registry", "https://registry.test/x"],
            "registry: got 'https://registry.test",
        ),
        (["--overlay", "gpu", "--registry", "registry.test", "--tag", "1 2"], "tag: got '1 2'"),
    ],
)
def test_invalid_flag_is_reported_before_any_request(cluster, flags, says):
    code, line = error("up", *flags)
    assert code == 2
    assert says in line
    assert cluster.requests == []


@pytest.mark.parametrize(
    "verb", [("status",), ("down",), ("scale", "policy=2"), ("logs", "policy"), ("run", "list"), ("doctor",)]
)
@pytest.mark.parametrize("name", ["../x", "", "UPPER"])
def test_invalid_namespace_is_reported_by_every_verb_before_any_request(cluster, verb, name):
    code, line = error(*verb, "--namespace", name)
    assert (code, f"namespace: got '{name}', allowed: 1 to 63" in line) == (2, True)
    assert cluster.requests == []


def test_missing_namespace_is_not_taken_for_one_without_a_run(cluster):
    for verb in ("status", "down"):
        code, line = error(verb, "--namespace", "elsewhere")
        assert (code, "the cluster has no namespace elsewhere" in line) == (2, True)
    for wanted in ("reward", "reward=-1", "reward=x", "reward=²", "=2"):
        assert "allowed: PROCESS=NUMBER" in error("scale", wanted)[1]


def test_missing_kubectl_or_checkout_is_reported(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, line = error(*UP)
    assert (code, "kubectl: got 'no kubectl on the PATH'" in line) == (2, True)
    monkeypatch.setattr(manifests, "__file__", str(tmp_path / "fairlead" / "k8s" / "manifests.py"))
    code, line = error(*UP)
    assert (code, "allowed: a source checkout of Fairlead" in line) == (2, True)


def test_manifests_contain_no_password_of_the_run(cluster):
    flags = ["--set", "queue.redis_password=geheim", "--set", "queue.redis_url=redis://u:geheim@host:6379"]
    result = CliRunner().invoke(app, ["k8s", "render", "--overlay", "kind", *flags])
    assert result.exit_code == 0, result.output
    assert "geheim" not in result.output
    assert "ignored: queue.redis_url and queue.redis_password" in result.stderr
