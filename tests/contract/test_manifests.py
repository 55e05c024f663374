"""The manifests: each variant renders, fits the schemas of Kubernetes, and its parts fit one another."""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from fairlead.config import load
from fairlead.errors import EXIT_CODE, Stalled
from fairlead.k8s.manifests import COMPONENT, NAME, PART_OF, checkout, kustomize
from fairlead.transports.rollouts.keys import GROUP, Keys
from tests.rendered import (
    VARIANTS,
    container,
    data_of,
    needs_kubectl,
    of_kind,
    probes,
    rendered,
    templates,
)

pytestmark = needs_kubectl
MODEL_SERVICES = {"policy": 5001, "reward": 5002, "reference": 5003}
COMPONENTS = {
    "shared": (),
    "files": ("files",),
    "queue": ("redis",),
    "model-service": tuple(MODEL_SERVICES),
    "worker": ("rollout-worker",),
    "gateway": ("gateway",),
    "trainer": ("trainer",),
    "weights": ("weights",),
    "autoscaler": (),
    "monitoring": (),
    "network": (),
}
"""By the label that `down`, `scale`, stages and patches go by: the processes."""
OLDEST, NEWEST = "1.30", "1.36"
"""Versions of Kubernetes; the oldest is the first with `preStop.sleep` without a switch."""

# What extensions define is in no schema of Kubernetes: these are written by hand, from their own pages.
_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}


def _exactly(required: str, optional: str = "", **types: object) -> dict[str, object]:
    names = [*required.split(), *optional.split()]
    return {
        "type": "object",
        "properties": {name: types.get(name, {}) for name in names},
        "required": required.split(),
        "additionalProperties": False,
    }


_TRIGGER = _exactly(
    "type metadata authenticationRef",
    type={"const": "redis-streams"},
    metadata=_exactly(
        "address stream consumerGroup",
        "lagCount pendingEntriesCount",
        **dict.fromkeys(["address", "stream", "consumerGroup", "lagCount", "pendingEntriesCount"], _TEXT),
    ),
    authenticationRef=_exactly("name"),
)
CUSTOM = {
    "ScaledObject": _exactly(
        "scaleTargetRef triggers minReplicaCount maxReplicaCount fallback pollingInterval cooldownPeriod",
        "advanced",
        scaleTargetRef=_exactly("name"),
        triggers={"type": "array", "items": _TRIGGER},
        minReplicaCount=_NUMBER,
        maxReplicaCount=_NUMBER,
        pollingInterval=_NUMBER,
        cooldownPeriod=_NUMBER,
        fallback=_exactly("failureThreshold replicas", failureThreshold=_NUMBER, replicas=_NUMBER),
        advanced=_exactly(
            "horizontalPodAutoscalerConfig", horizontalPodAutoscalerConfig=_exactly("behavior")
        ),
    ),
    "TriggerAuthentication": _exactly(
        "secretTargetRef", secretTargetRef={"type": "array", "items": _exactly("parameter name key")}
    ),
    "PodMonitor": _exactly(
        "selector podMetricsEndpoints podTargetLabels",
        selector=_exactly("matchLabels"),
        podMetricsEndpoints={"type": "array", "items": _exactly("port path interval", interval=_TEXT)},
    ),
}


@pytest.fixture(params=VARIANTS)
def objects(request):
    return rendered(request.param)


def test_every_overlay_and_component_is_among_the_variants():
    shipped = {folder.name for kind in ("overlays", "components") for folder in (checkout() / kind).iterdir()}
    assert shipped == {
        name for overlay, components in VARIANTS.values() for name in (overlay, *components)
    } | {"gpu"}


@pytest.mark.parametrize("folder", ["base", "overlays/kind", "overlays/gpu"])
def test_a_folder_renders_by_itself(folder):
    assert {"policy", "trainer", "redis"} <= set(templates(kustomize(checkout() / folder)))


@cache
def _validate(manifest: str, version: str) -> None:
    """What `kubernetes-validate --strict` does."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def test_strict_schemas(objects):
    for manifest, version in itertools.product(objects, (OLDEST, NEWEST)):
        if manifest["kind"] not in CUSTOM:
            _validate(json.dumps(manifest), version)
    for manifest in objects:
        if manifest["kind"] in CUSTOM:
            assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
            jsonschema.validate(manifest["spec"], CUSTOM[manifest["kind"]])


def test_everything_is_labelled_and_in_the_namespace(objects):
    for manifest in objects:
        labels = manifest["metadata"]["labels"]
        assert labels[PART_OF] == "fairlead"
        assert labels[COMPONENT] in COMPONENTS
        assert labels["app.kubernetes.io/instance"] == "run"
        assert manifest["metadata"]["namespace"] == "fairlead"
    for name, template in templates(objects).items():
        assert template["metadata"]["labels"][NAME] == name
        assert name in COMPONENTS[template["metadata"]["labels"][COMPONENT]]


def test_selectors_find_their_own_pods_and_no_others(objects):
    labels = {name: template["metadata"]["labels"] for name, template in templates(objects).items()}

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, found in labels.items() if selector.items() <= found.items()}

    for name, manifest in of_kind(objects, "Deployment", "StatefulSet").items():
        assert selected(manifest["spec"]["selector"]["matchLabels"]) == {name}
        for spread in manifest["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
            assert selected(spread["labelSelector"]["matchLabels"]) == {name}
            assert spread["nodeTaintsPolicy"] == "Honor"
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert set(budgets) == {*MODEL_SERVICES, "rollout-worker", "gateway", "redis"}
    for name, manifest in budgets.items():
        assert selected(manifest["spec"]["selector"]["matchLabels"]) == {name}
        assert manifest["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for name, manifest in of_kind(objects, "Service").items():
        assert selected(manifest["spec"]["selector"]) == {name}
    for manifest in of_kind(objects, "PodMonitor").values():
        monitored = selected(manifest["spec"]["selector"]["matchLabels"])
        endpoint = manifest["spec"]["podMetricsEndpoints"][0]["port"]
        ports = {
            name
            for name, template in templates(objects).items()
            if endpoint in {port["name"] for port in container(template).get("ports", ())}
        }
        assert monitored - ports == {"redis", "files"}


def test_ports_of_services_containers_probes_and_addresses_are_the_same(objects):
    found = templates(objects)
    for name, manifest in of_kind(objects, "Service").items():
        # HTTP clients know no balancing, so that the gateway has an address of its own.
        assert manifest["spec"].get("clusterIP") == (None if name == "gateway" else "None")
        ports = {port["name"]: port["containerPort"] for port in container(found[name])["ports"]}
        for port in manifest["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for template in found.values():
        ports = {port["name"]: port["containerPort"] for port in container(template).get("ports", ())}
        for _, probe in probes(template):
            kind = next(one for one in ("grpc", "httpGet", "tcpSocket", "exec") if one in probe)
            if kind != "exec":
                assert probe[kind]["port"] in (*ports.values(), *ports)
    settings = data_of(objects, "cluster")
    for name, port in MODEL_SERVICES.items():
        assert settings[f"FAIRLEAD_{name.upper()}__ADDRESSES"] == f'["dns:///{name}:{port}"]'
        assert settings[f"FAIRLEAD_{name.upper()}__BIND"] == f"0.0.0.0:{port}"
        assert of_kind(objects, "Service")[name]["spec"]["ports"][0]["port"] == port
    assert settings["FAIRLEAD_GATEWAY__BIND"] == "0.0.0.0:8080"
    assert of_kind(objects, "Service")["gateway"]["spec"]["ports"][0]["port"] == 8080
    assert settings["FAIRLEAD_QUEUE__REDIS_URL"] == "redis://redis:6379"
    assert "\nport 6379\n" in data_of(objects, "redis")["valkey.conf"]
    metrics = {
        port["containerPort"]
        for template in found.values()
        for port in container(template).get("ports", ())
        if port["name"] == "metrics"
    }
    assert metrics == {int(settings["FAIRLEAD_OBSERVE__METRICS_PORT"])}


def test_every_reference_resolves(objects):
    maps, claims = of_kind(objects, "ConfigMap"), of_kind(objects, "PersistentVolumeClaim")
    secret = {"password", "keda-username", "keda-password"}
    for template in templates(objects).values():
        spec = template["spec"]
        assert spec["serviceAccountName"] in of_kind(objects, "ServiceAccount")
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounted = {mount["name"] for mount in container(template)["volumeMounts"]}
        assert mounted - {"data"} == set(volumes)
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name", next(iter(maps))) in maps
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "fairlead") in claims
        for source in container(template).get("envFrom", ()):
            made_by_hand = source.get("secretRef", {}).get("name") == "fairlead-api-key"
            assert made_by_hand or source["configMapRef"]["name"] in maps
        for variable in container(template).get("env", ()):
            source = variable.get("valueFrom", {})
            reference = source.get("secretKeyRef", {"name": "redis", "key": "password"})
            if reference["name"] == "fairlead-api-key":
                assert reference["optional"] is True
                continue
            assert (reference["name"], reference["key"] in secret) == ("redis", True)
    for manifest in of_kind(objects, "TriggerAuthentication").values():
        for reference in manifest["spec"]["secretTargetRef"]:
            assert (reference["name"], reference["key"] in secret) == ("redis", True)
    for name, manifest in of_kind(objects, "StatefulSet").items():
        assert manifest["spec"]["serviceName"] in of_kind(objects, "Service")
        claim = {one["metadata"]["name"] for one in manifest["spec"]["volumeClaimTemplates"]}
        assert claim == {"data"}, name
    job = of_kind(objects, "Job")["trainer"]["spec"]
    service = of_kind(objects, "Service")[job["template"]["spec"]["subdomain"]]
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_every_pod_is_restricted(objects):
    for manifest in of_kind(objects, "ServiceAccount").values():
        assert manifest["automountServiceAccountToken"] is False
    for name, template in templates(objects).items():
        spec, found = template["spec"], container(template)
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == (999 if name == "redis" else 10001)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert found["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(found["resources"]["requests"])
        assert "memory" in found["resources"]["limits"]
        assert "/tmp" in {mount["mountPath"] for mount in found["volumeMounts"]}
        for volume in spec["volumes"]:
            assert "hostPath" not in volume
            assert volume.get("emptyDir", {"sizeLimit": ""}).keys() >= {"sizeLimit"}
        assert "volumeMounts" in found
    for name in MODEL_SERVICES:
        mounts = {one["mountPath"]: one for one in container(templates(objects)[name])["volumeMounts"]}
        assert mounts["/fairlead"]["readOnly"] is True


def test_the_settings_of_the_cluster_are_settings(objects, tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(data_of(objects, "run")["run.toml"])
    for name, value in data_of(objects, "cluster").items():
        monkeypatch.setenv(name, value)
    config = load(tmp_path / "run.toml")
    assert config.folder.root == Path("/fairlead/runs/run")
    assert config.data_path("prompts.jsonl") == Path("/fairlead/data/prompts.jsonl")
    assert config.data_path("../runs/quickstart/data/x") == Path("/fairlead/runs/quickstart/data/x")
    for name in MODEL_SERVICES:
        section, template = getattr(config, name), templates(objects)[name]
        assert 30 <= section.max_connection_age_seconds <= 300, "or clients never find new replicas"
        assert section.drain_seconds >= section.timeout_seconds, "the longest call"
        sleep = container(template)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert template["spec"]["terminationGracePeriodSeconds"] >= sleep + section.drain_seconds + 10
    worker = templates(objects)["rollout-worker"]["spec"]
    assert worker["terminationGracePeriodSeconds"] >= config.rollout_worker.drain_seconds + 10
    gateway = templates(objects)["gateway"]
    sleep = container(gateway)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert config.gateway.drain_seconds >= config.gateway.timeout_seconds
    assert gateway["spec"]["terminationGracePeriodSeconds"] >= sleep + config.gateway.drain_seconds + 10
    assert "password" not in "".join(data_of(objects, "cluster")).lower()


def test_probes_ask_for_what_they_should(objects):
    found = {name: dict(probes(template)) for name, template in templates(objects).items()}
    for name, port in MODEL_SERVICES.items():
        if "FAIRLEAD_TLS__CERTIFICATE" in data_of(objects, "cluster"):
            # What speaks TLS is not asked by gRPC probes, which do not.
            assert set(found[name]) == {"livenessProbe", "readinessProbe"}
            assert found[name]["readinessProbe"]["httpGet"] == {"port": "metrics", "path": "/readyz"}
            assert found[name]["livenessProbe"]["httpGet"] == {"port": "metrics", "path": "/healthz"}
            continue
        assert found[name]["readinessProbe"]["grpc"] == {"port": port}
        for probe in ("startupProbe", "livenessProbe"):
            # Not the health of the server: that of the policy waits for the trainer.
            assert found[name][probe]["grpc"] == {"port": port, "service": "liveness"}
        startup = found[name]["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800, "a large model loads slowly"
    for name in ("rollout-worker", "gateway", "trainer"):
        assert found[name]["livenessProbe"]["httpGet"]["path"] == "/healthz", "/readyz asks others"
    for name in ("rollout-worker", "gateway"):
        assert found[name]["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert set(found["redis"]) == {"startupProbe", "livenessProbe", "readinessProbe"}


@pytest.mark.parametrize("variant", ["kind, keys, tls", "everything"])
def test_keys_and_certificates_are_where_the_settings_say(variant, tmp_path, monkeypatch):
    objects = rendered(variant)
    settings = data_of(objects, "cluster")
    wanted = {"fairlead-tls": ("tls.crt", "tls.key", "ca.crt"), "fairlead-keys": ("keys.json",)}
    mounted: dict[str, set[str]] = {}
    for name, template in templates(objects).items():
        secrets = {
            volume["name"]: volume["secret"]["secretName"]
            for volume in template["spec"]["volumes"]
            if "secret" in volume
        }
        # Whole folders: the kubelet never changes a file that is mounted by a subPath.
        mounts = [mount for mount in container(template)["volumeMounts"] if mount["name"] in secrets]
        assert all(mount["readOnly"] and "subPath" not in mount for mount in mounts)
        mounted[name] = {
            f"{mount['mountPath']}/{file}" for mount in mounts for file in wanted[secrets[mount["name"]]]
        }
        shows = {source.get("secretRef", {}).get("name") for source in container(template).get("envFrom", ())}
        assert ("fairlead-api-key" in shows) is (name in ("rollout-worker", "trainer", "gateway")), name
    certificate = {settings[f"FAIRLEAD_TLS__{name}"] for name in ("CERTIFICATE", "KEY", "CA")}
    for name in (*MODEL_SERVICES, "rollout-worker", "trainer", "weights"):
        assert certificate <= mounted[name], name
    for name in (*MODEL_SERVICES, "weights"):
        assert settings["FAIRLEAD_KEYS__FILE"] in mounted[name], name
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run.toml").write_text(data_of(objects, "run")["run.toml"])
    config = load(tmp_path / "run.toml")
    assert (config.tls.on, config.tls.mutual, config.keys.allow_insecure) == (True, True, False)
    assert "fl_" not in "".join(settings.values())


def test_the_trainer_is_a_job_that_tells_mistakes_from_bad_luck(objects):
    job = of_kind(objects, "Job")["trainer"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    ignored, failed = job["podFailurePolicy"]["rules"]
    assert ignored["action"] == "Ignore"
    assert ignored["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert failed["action"] == "FailJob"
    final = {code for kind, code in EXIT_CODE.items() if kind is not Stalled}
    assert set(failed["onExitCodes"]["values"]) == final
    assert failed["onExitCodes"]["containerName"] == container(job["template"])["name"]


def test_numbers_are_left_to_whoever_scales(objects):
    assert [name for name, one in of_kind(objects, "Deployment").items() if "replicas" in one["spec"]] == []


def test_the_queue_keeps_its_work(objects):
    settings = dict(
        line.split(" ", 1)
        for line in data_of(objects, "redis")["valkey.conf"].splitlines()
        if not line.startswith("#")
    )
    assert settings["appendonly"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    redis = of_kind(objects, "StatefulSet")["redis"]["spec"]["template"]
    limit = container(redis)["resources"]["limits"]["memory"]
    # The append-only file is rewritten by a fork, whose pages may double.
    assert int(settings["maxmemory"].removesuffix("mb")) * 2 <= int(limit.removesuffix("Gi")) * 1024
    repository, _, tag = container(redis)["image"].rpartition(":")
    assert (repository, int(tag.partition(".")[0]) >= 8) == ("docker.io/valkey/valkey", True)


@pytest.mark.parametrize("variant", ["gpu", "kind, gpu", "everything"])
def test_gpus(variant):
    objects = rendered(variant)
    for name, template in templates(objects).items():
        limits, volumes = container(template)["resources"]["limits"], template["spec"]["volumes"]
        has_gpu = name in (*MODEL_SERVICES, "trainer")
        assert ("nvidia.com/gpu" in limits) is has_gpu
        shared = [volume["emptyDir"] for volume in volumes if volume["name"] == "shm"]
        assert [one["medium"] for one in shared] == ["Memory"] * has_gpu
        assert [toleration["key"] for toleration in template["spec"].get("tolerations", ())] == [
            "nvidia.com/gpu"
        ] * has_gpu
    for name in MODEL_SERVICES:
        rolling = of_kind(objects, "Deployment")[name]["spec"]["strategy"]["rollingUpdate"]
        assert rolling == {"maxSurge": 0, "maxUnavailable": 1}


def test_keda_counts_what_waits_and_what_is_in_hand():
    objects = rendered("kind, keda")
    (scaled,) = of_kind(objects, "ScaledObject").values()
    assert scaled["spec"]["scaleTargetRef"]["name"] in of_kind(objects, "Deployment")
    triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
    assert ["lagCount" in trigger for trigger in triggers] == [True, False]
    assert ["pendingEntriesCount" in trigger for trigger in triggers] == [False, True]
    for trigger in triggers:
        assert trigger["stream"] == Keys("run").prompts
        assert trigger["consumerGroup"] == GROUP
        assert trigger["address"] == "redis.fairlead.svc:6379"
    environment = {one["name"] for one in container(templates(objects)["redis"])["env"]}
    assert "KEDA_PASSWORD" in environment


def test_policies_without_a_shared_volume_fetch_and_relay(tmp_path, monkeypatch):
    objects = rendered("kind, weights")
    policy, weights = templates(objects)["policy"], templates(objects)["weights"]
    assert not [one for one in policy["spec"]["volumes"] if "persistentVolumeClaim" in one]
    mounts = {mount["name"]: mount for mount in container(weights)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in weights["spec"]["volumes"]}
    assert volumes["fairlead"]["persistentVolumeClaim"] == {"claimName": "fairlead"}
    assert mounts["fairlead"]["readOnly"] is True
    for name, value in data_of(objects, "cluster").items():
        monkeypatch.setenv(name, value)
    told = {one["name"]: one.get("value") for one in container(policy)["env"]}
    assert told["FAIRLEAD_WEIGHTS__RELAY_ADDRESS"] == "$(POD_IP):5001"
    assert told["FAIRLEAD_WEIGHTS__CACHE"] in {
        mount["mountPath"] for mount in container(policy)["volumeMounts"] if not mount.get("readOnly")
    }
    section = load().weights
    assert section.transport == "grpc"
    assert section.addresses == ("dns:///weights:5004",)
    assert section.bind == "0.0.0.0:5004"
    sleep = container(weights)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert weights["spec"]["terminationGracePeriodSeconds"] >= sleep + section.drain_seconds + 10
    assert dict(probes(weights))["livenessProbe"]["grpc"] == {"port": 5004, "service": "liveness"}
    (claimed,) = [
        one for one in templates(rendered("kind"))["policy"]["spec"]["volumes"] if one["name"] == "fairlead"
    ]
    assert "persistentVolumeClaim" in claimed


def test_images_are_those_of_the_dockerfiles_and_run_as_nobody_in_particular():
    objects = rendered("kind")
    folder = checkout().parent / "docker"
    images = {name: container(template)["image"] for name, template in templates(objects).items()}
    used = {re.fullmatch(r"registry.test/team/fairlead-(\w+):[\w.]+", one) for one in images.values()}
    assert {match[1] for match in used if match} == {path.stem for path in folder.glob("*.Dockerfile")}
    for path in folder.glob("*.Dockerfile"):
        text = path.read_text()
        assert "\nUSER 10001:10001\n" in text
        assert 'ENTRYPOINT ["/usr/bin/tini", "--"]' in text
        assert not re.search(r"^(ARG|ENV) .*(PASSWORD|TOKEN|SECRET)", text, re.MULTILINE)
    for name in ("rollout-worker", "gateway"):
        assert images[name].split("/")[-1].startswith("fairlead-light")


def test_the_yaml_of_the_folder_is_one_document_a_file():
    for path in checkout().rglob("*.yaml"):
        assert len(list(yaml.safe_load_all(path.read_text()))) == 1, path
