"""Several runs in one namespace: no edge of the graph of their objects leads to another run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from fairlead.config import load
from fairlead.errors import ConfigError
from fairlead.k8s.manifests import Manifest, Target, render_run
from fairlead.k8s.prefix import check_run_name, of_one_run
from fairlead.k8s.settings import pod_templates
from monitoring.__main__ import RULES
from tests.contract.test_network_policies import EDGES, PORTS, Network
from tests.kubernetes_schemas import mistake
from tests.rendered import COMPONENTS, OF_OVERLAYS, QUEUE, VARIANTS, data_of, needs_kubectl, of_kind

RUNS = ("", "exp", "exp-b")
"""The run without a prefix, and two of which one name begins with the other."""
SHARED_VARIANTS = (
    *("everything", "kind, external redis", "kind, hpa, priority", "kind, feedback, backup"),
    "large, policy nodes",
)
"""Together they have every component but that which opens a run to others."""
INSTANCE = "app.kubernetes.io/instance"
OF_PERSONS = {
    *("fairlead-api-key", "fairlead-feedback-store", "fairlead-hub", "fairlead-keys", "fairlead-redis"),
    *("fairlead-registry", "fairlead-tls", "fairlead-weights-key"),
}
"""Secrets that a person creates, for all runs of the namespace."""


@cache
def of_run(run: str, variant: str, **options: Any) -> tuple[Manifest, ...]:
    """Return every object of a run; `run` is empty for that without a prefix."""
    overlay, components = VARIANTS[variant]
    overrides: dict[str, object] = {"name": run or "run", "ranks.nodes": 2}
    overrides |= {"feedback.origin": "https://feedback.test", "gateway.origin": "https://gateway.test"}
    overrides |= {"queue.redis_url": QUEUE} if "external-redis" in components else {}
    if "policy-nodes" in components:
        overrides |= {
            "policy.engine": "vllm",
            "policy.vllm.nnodes": 2,
            "policy.vllm.tensor_parallel_size": 16,
        }
    target = Target(
        overlay=overlay,
        components=components,
        namespace="fairlead",
        registry="registry.test/team",
        prefix=bool(run),
        **{key: dict(value) if key == "shared" else value for key, value in options.items()},
    )
    return tuple(render_run(load(None, overrides=overrides), target))


def pods(objects: tuple[Manifest, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each object with pods, and the labels of its pods."""
    for one in objects:
        for template in pod_templates(one):
            yield one["metadata"]["name"], template["metadata"]["labels"]


def selectors(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every selector of pods in an object with its path, but none of namespaces."""
    if isinstance(value, list):
        for inner in value:
            yield from selectors(inner, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}"
            if key in ("podSelector", "labelSelector") or (key == "selector" and path == ".spec"):
                assert "matchExpressions" not in inner, here
                yield here, inner.get("matchLabels", {} if "Selector" in key else inner)
            elif key != "namespaceSelector":
                yield from selectors(inner, here)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text with its path, without the positions in lists."""
    if isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, str):
        yield path, value


@pytest.fixture(params=SHARED_VARIANTS)
def variant(request):
    return request.param


@needs_kubectl
def test_variants_have_every_component():
    found = {name for variant in SHARED_VARIANTS for name in VARIANTS[variant][1]}
    assert found | {*OF_OVERLAYS, "shared-services"} == set(COMPONENTS)


@needs_kubectl
def test_no_object_of_two_runs_has_the_same_name(variant):
    names = [(one["kind"], one["metadata"]["name"]) for run in RUNS for one in of_run(run, variant)]
    assert len(names) == len(set(names))
    for one in of_run("exp", variant):
        assert one["metadata"]["name"].startswith("exp-")
        assert len(one["metadata"]["name"]) - len("exp") + 30 <= (52 if one["kind"] == "CronJob" else 63)
        assert one["metadata"]["labels"][INSTANCE] == "exp"


@needs_kubectl
def test_every_selector_matches_pods_of_its_own_run_only(variant):
    everything = {(run, name): labels for run in RUNS for name, labels in pods(of_run(run, variant))}
    for run in RUNS:
        found = [each for one in of_run(run, variant) for each in selectors(one)]
        assert len(found) > 15
        for path, selector in found:
            matched = {key for key, labels in everything.items() if selector.items() <= labels.items()}
            assert {name for name, _ in matched} <= {run}, (path, selector)
            assert not run or selector.get(INSTANCE) == run, (path, selector)


@needs_kubectl
def test_every_reference_and_address_leads_to_an_object_of_the_same_run(variant):
    plain = {one["metadata"]["name"] for one in of_run("", variant)} | {"redis"}
    services = of_kind(of_run("", variant), "Service")
    own = re.compile(  # Names within an object, of images and of labels.
        r"(containers|initContainers|volumes|volumeMounts|volumeClaimTemplates\.metadata|ports|env|metrics)"
        r"(\.resource)?\.(name|port|mountPath)$|\.(containerName|targetPort|port|portName|namespace|result|command|args)$"
        r"|labels\.|matchLabels\.|\.selector\.app|resourceNames$|\.priorityClassName$|replicatedJobs\.name$"
        r"|^\.kind$|podSetName|groups\.name$|\.rules\.labels\.|\.from\.|\.serverName$"
        r"|^\.data\.FAIRLEAD_TLS__SERVER_NAME$|\.env\.value$|\.(parentRefs|issuerRef)\.name$|\.dnsNames$"
    )
    for one in of_run("exp", variant):
        for path, text in leaves(one):
            if text in plain and not own.search(path):
                named_by_a_person = text in OF_PERSONS
                assert named_by_a_person, f"{one['kind']} {one['metadata']['name']}: {path} = {text}"
            for host in (
                re.findall(r"([a-z0-9.-]+):\d{4,5}\b", text) if one["kind"] != "PrometheusRule" else ()
            ):
                labels = [label for label in host.split(".") if label not in ("svc", "fairlead")]
                assert not set(labels) & set(services), f"{path}: {text}"
    names = {(one["kind"], one["metadata"]["name"]) for one in of_run("exp", variant)}
    addresses = data_of(tuple(one for one in of_run("exp", variant)), "exp-cluster")
    for key, value in addresses.items():
        if key.endswith("__ADDRESSES"):
            (host,) = re.findall(r"//([\w-]+):", value)
            assert ("Service", host) in names


@needs_kubectl
def test_objects_match_the_schemas_and_have_their_own_passwords(variant):
    for one in of_run("exp", variant):
        if not re.search(
            r"\.(sh|coreos\.com|x-k8s\.io|networking\.k8s\.io/v1alpha)|gateway\.|cert-", one["apiVersion"]
        ):
            assert mistake(one) == ""
    secrets = {text for one in of_run("exp", variant) for path, text in leaves(one) if "ecret" in path}
    assert ("exp-redis" in secrets) is ("external-redis" not in VARIANTS[variant][1])
    assert "redis" not in secrets


@needs_kubectl
def test_what_belongs_to_the_namespace_is_in_no_run():
    left = {(one["kind"], one["metadata"]["name"]) for one in of_run("", "everything")}
    mine = {
        (one["kind"], one["metadata"]["name"].removeprefix("exp-")) for one in of_run("exp", "everything")
    }
    mine = {(kind, re.sub("-[a-z0-9]{10}$", "", name)) for kind, name in mine}
    left = {(kind, re.sub("-[a-z0-9]{10}$", "", name)) for kind, name in left}
    dashboards = {("ConfigMap", f"dashboard-{name}") for name in ("run", "services", "api", "feedback")}
    assert left - mine == {("Namespace", "fairlead"), ("Role", "fairlead-operator")} | dashboards
    assert mine <= left


@needs_kubectl
def test_network_policies_of_two_runs_let_no_call_pass_between_them():
    network = Network(of_run("exp", "everything") + of_run("exp-b", "everything"))
    inside = {name for name, (namespace, _) in network.pods.items() if namespace == "fairlead"}
    found = {
        (source, target, port)
        for source in network.pods
        for target in inside
        for port in PORTS
        if network.allows(source, target, port)
    }
    outside = set(network.pods) - inside
    assert found == {
        (source if source in outside else f"{run}-{source}", f"{run}-{target}", port)
        for run in ("exp", "exp-b")
        for source, target, port in EDGES
    }


@needs_kubectl
def test_services_are_open_to_other_runs_only_with_the_component():
    def allowed(first: str, second: str) -> set[tuple[str, str, int]]:
        network = Network(of_run("exp", first) + of_run("exp-b", second))
        mine, theirs = ([name for name in network.pods if name.startswith(run)] for run in ("exp-", "exp-b-"))
        mine = [name for name in mine if name not in theirs]
        return {
            (source, target, port)
            for source in theirs
            for target in mine
            for port in PORTS
            if network.allows(source, target, port)
        }

    both = "kind, shared services"
    assert allowed(both, both) == {
        ("exp-b-rollout-worker", "exp-reward", 5002),
        ("exp-b-rollout-worker", "exp-reference", 5003),
        ("exp-b-gateway", "exp-reward", 5002),
    }
    assert allowed("kind + network-policies", both) == allowed(both, "kind + network-policies") == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
@pytest.mark.slow
@pytest.mark.parametrize("run", ["a", "another"])
def test_rules_of_a_run_fire_for_this_run_only(tmp_path, run):
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = of_one_run(rule["expr"], namespace="", run=run)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    # The series of these tests have no namespace.
    tests = yaml.safe_load(RULES.with_name("rules_test.yaml").read_text())
    for case in tests["tests"]:
        for check in case.get("alert_rule_test", ()):
            check["exp_alerts"] = [one for one in check["exp_alerts"] if one["exp_labels"]["run"] == run]
        for check in case["promql_expr_test"]:
            check["exp_samples"] = [one for one in check["exp_samples"] if f'run="{run}"' in one["labels"]]
    (tmp_path / "rules_test.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "rules_test.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@needs_kubectl
def test_monitor_of_a_run_keeps_the_job_that_rules_expect():
    (monitor,) = of_kind(of_run("exp", "everything"), "PodMonitor").values()
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        assert endpoint["relabelings"][-1] == {"targetLabel": "job", "replacement": "fairlead/fairlead"}
    jobs = set(re.findall(r'job=~"([^"]+)"', RULES.read_text()))
    assert jobs
    assert all(re.fullmatch(pattern, "fairlead/fairlead") for pattern in jobs)


@needs_kubectl
def test_clients_of_a_run_expect_a_name_that_the_shared_certificate_has():
    settings = data_of(of_run("exp", "everything"), "exp-cluster")
    assert settings["FAIRLEAD_TLS__SERVER_NAME"] == "policy"
    assert "FAIRLEAD_TLS__SERVER_NAME" not in data_of(of_run("", "everything"), "cluster")
    assert "FAIRLEAD_TLS__SERVER_NAME" not in data_of(of_run("exp", "kind, external redis"), "exp-cluster")


@needs_kubectl
def test_a_run_on_an_existing_volume_has_none_of_its_own():
    objects = of_run("exp", "kind, feedback, backup", volume="team-files")
    assert list(of_kind(objects, "PersistentVolumeClaim")) == ["exp-fairlead-backup"]
    claims = {text for one in objects for path, text in leaves(one) if path.endswith(".claimName")}
    assert claims == {"team-files", "exp-fairlead-backup", "data-exp-feedback-0"}


@pytest.mark.parametrize("name", ["Exp", "exp.1", "1st", "exp-", "e" * 31, ""])
def test_a_name_that_cannot_be_a_prefix_is_refused(name):
    with pytest.raises(ConfigError, match="allowed: 1 to 30 lower-case letters"):
        check_run_name(name)


def test_a_refused_name_gets_a_proposal():
    with pytest.raises(ConfigError, match=r"with a letter first, such as llama-3-1-8b-kl"):
        check_run_name("Llama_3.1-8B (KL)")
    check_run_name("llama-3-1-8b-kl")
