"""Components for a queue of your own, autoscaling without KEDA, priority, and models in an image."""

from __future__ import annotations

import importlib.util
import re

import pytest

from fairlead.config import load
from fairlead.errors import ConfigError
from fairlead.k8s.manifests import Target, render
from fairlead.transports.rollouts.redis_connection import address, tls_options
from tests.rendered import (
    MODEL_SERVICES,
    QUEUE,
    container,
    data_of,
    needs_kubectl,
    of_kind,
    rendered,
    templates,
)

pytestmark = needs_kubectl


def test_external_queue_replaces_that_of_the_base(tmp_path, monkeypatch):
    objects = rendered("kind, external redis")
    assert not [
        one
        for one in objects
        if one["metadata"]["name"].partition("-")[0] == "redis"
        and one["kind"] in ("StatefulSet", "Service", "PodDisruptionBudget", "ConfigMap")
    ]
    monkeypatch.setenv("FAIRLEAD_QUEUE__REDIS_PASSWORD", "of-the-secret")
    for name in ("trainer", "rollout-worker"):
        found = container(templates(objects)[name])
        variables = {one["name"]: one for one in found["env"]}
        secret = variables["FAIRLEAD_QUEUE__REDIS_PASSWORD"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "fairlead-redis", "key": "password"}
        (volume,) = [one for one in templates(objects)[name]["spec"]["volumes"] if one["name"] == "redis-ca"]
        (mount,) = [one for one in found["volumeMounts"] if one["name"] == "redis-ca"]
        authority = f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
        assert variables["FAIRLEAD_QUEUE__REDIS_TLS_CA"]["value"] == authority
        # The pod's own settings, with a file where the Secret is mounted.
        (tmp_path / "run.toml").write_text(data_of(objects, f"run-{name}")["run.toml"])
        (tmp_path / "ca.crt").write_text("")
        for key, value in data_of(objects, "cluster").items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("FAIRLEAD_QUEUE__REDIS_TLS_CA", str(tmp_path / "ca.crt"))
        queue = load(tmp_path / "run.toml").queue
        assert (queue.redis_url, address(queue.redis_url)) == (QUEUE, "queue.test:6380")
        assert tls_options(queue, name="queue")["ssl_ca_certs"] == str(tmp_path / "ca.crt")
        assert templates(objects)[name]["metadata"]["labels"]["fairlead-queue"] == "external"
    for trigger in of_kind(objects, "ScaledObject")["rollout-worker"]["spec"]["triggers"]:
        shown = trigger["metadata"]
        assert (shown["address"], shown["enableTLS"], shown["databaseIndex"]) == (
            "queue.test:6380",
            "true",
            "2",
        )
    policy = of_kind(objects, "NetworkPolicy")["external-redis"]["spec"]
    assert policy["egress"][0]["to"] == [{"namespaceSelector": {"matchLabels": {"fairlead-queue": "true"}}}]


@pytest.mark.parametrize(
    ("components", "overrides", "message"),
    [
        (("external-redis",), {}, r"queue\.redis_url: got ''"),
        (("external-redis",), {"queue.redis_url": "unix:///run/redis"}, "got 'unix:///run/redis'"),
        (("keda", "hpa"), {}, "two autoscalers of rollout-worker"),
        (("model-image",), {}, "got 'image fairlead-models of "),
    ],
)
def test_parts_that_cannot_work_are_refused(components, overrides, message):
    target = Target(overlay="kind", components=components, namespace="fairlead")
    with pytest.raises(ConfigError, match=message):
        render(load(overrides=overrides), target)


def test_models_of_an_image_are_mounted_and_every_pod_has_the_priority():
    objects = rendered("kind, hpa, priority")
    for name, template in templates(objects).items():
        assert template["spec"]["priorityClassName"] == "fairlead"
        images = [one["image"] for one in template["spec"]["volumes"] if "image" in one]
        has_models = name in (*MODEL_SERVICES, "trainer")
        assert bool(images) is has_models
        if has_models:
            assert images[0]["reference"].startswith("registry.test/team/fairlead-models:")
            (mount,) = [one for one in container(template)["volumeMounts"] if one["name"] == "models"]
            assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}
    for name in ("rollout-worker", "gateway"):
        assert "cpu" in container(templates(objects)[name])["resources"]["requests"], (
            "the base of utilization"
        )


@pytest.mark.parametrize("components", [("kueue",), ("kueue", "jobset")])
def test_trainer_waits_in_a_queue_of_kueue(components):
    target = Target(overlay="gpu", components=components, namespace="fairlead", registry="registry.test/team")
    (trainer,) = of_kind(render(load(), target), "Job", "JobSet").values()
    assert trainer["kind"] == ("JobSet" if "jobset" in components else "Job")
    assert trainer["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "fairlead"
    assert "suspend" not in trainer["spec"], "the next `up` would suspend a trainer that runs"


def test_certificate_has_every_name_that_clients_call():
    objects = rendered("everything")
    certificate = of_kind(objects, "Certificate")["fairlead-tls"]["spec"]
    settings = data_of(objects, "cluster")
    called = set(re.findall(r"dns:///([\w.-]+):", "".join(settings.values())))
    called |= {"gateway", "feedback"} & set(of_kind(objects, "Service"))
    assert called <= set(certificate["dnsNames"])
    assert {"server auth", "client auth"} <= set(certificate["usages"]), "TLS is mutual"
    mounted = {
        volume["secret"]["secretName"]
        for template in templates(objects).values()
        for volume in template["spec"]["volumes"]
        if volume["name"] == "tls"
    }
    assert mounted == {certificate["secretName"]}


def test_ingresses_ask_for_certificates():
    components = ("ingress-certificate", "gateway-ingress", "feedback")
    target = Target(overlay="kind", components=components, namespace="fairlead")
    config = load(
        overrides={"gateway.origin": "https://gateway.test", "feedback.origin": "https://feedback.test"}
    )
    routes = of_kind(render(config, target), "Ingress")
    assert set(routes) == {"gateway", "feedback"}
    for route in routes.values():
        assert route["metadata"]["annotations"]["cert-manager.io/cluster-issuer"] == "letsencrypt"


def test_vllm_gets_its_image_and_shared_memory():
    objects = rendered("kind + vllm")
    policy = templates(objects)["policy"]
    assert container(policy)["image"].startswith("registry.test/team/fairlead-vllm:")
    (shared,) = [one["emptyDir"] for one in policy["spec"]["volumes"] if one["name"] == "shm"]
    assert shared == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_nodes_of_a_policy_are_one_service_and_workers_without_servers():
    objects = rendered("large, policy nodes")
    assert "policy" not in of_kind(objects, "Deployment")
    group = of_kind(objects, "LeaderWorkerSet")["policy"]["spec"]["leaderWorkerTemplate"]
    assert group["size"] == 2
    first, further = (templates(objects)[name] for name in ("policy", "policy-node"))
    single = templates(rendered("large"))["policy"]
    for template in (first, further):
        assert container(template)["resources"]["limits"]["nvidia.com/gpu"] == "8", "16 on two nodes"
        assert container(template)["image"] == container(single)["image"]
        volumes = {one["name"]: one for one in template["spec"]["volumes"]}
        assert volumes["fairlead"] == {"name": "fairlead", "persistentVolumeClaim": {"claimName": "fairlead"}}
        assert volumes["run"]["configMap"]["name"] in of_kind(objects, "ConfigMap"), "both read the settings"
        assert template["metadata"]["labels"]["fairlead-nodes"] == "policy"
    assert container(first)["args"] == container(single)["args"]
    assert container(further)["args"][:3] == ["python", "-m", "services.policy.vllm.node"]
    assert importlib.util.find_spec("services.policy.vllm.node") is not None
    assert not {"ports", "startupProbe", "livenessProbe", "readinessProbe"} & set(container(further))
    service = of_kind(objects, "Service")["policy"]["spec"]["selector"]
    assert service.items() <= first["metadata"]["labels"].items()
    assert not service.items() <= further["metadata"]["labels"].items(), "callers reach first nodes only"


@pytest.mark.parametrize(
    ("components", "vllm", "message"),
    [
        (("vllm", "policy-nodes"), {}, r"policy\.vllm\.nnodes: got 1, allowed: 2 or more"),
        (("vllm",), {"nnodes": 2}, "allowed: 1 without the component policy-nodes"),
        (("vllm", "policy-nodes"), {"nnodes": 3, "tensor_parallel_size": 8}, "divides the 8 GPUs"),
        (("vllm", "policy-nodes"), {"nnodes": "two"}, "allowed: a whole number above 0"),
    ],
)
def test_nodes_of_a_policy_need_component_and_setting(components, vllm, message):
    overrides = {"policy.engine": "vllm"} | {f"policy.vllm.{key}": value for key, value in vllm.items()}
    target = Target(overlay="gpu", components=components, namespace="fairlead", registry="registry.test")
    with pytest.raises(ConfigError, match=message):
        render(load(overrides=overrides), target)
