"""The pods of the manifests: security context, probes, configuration and scaling."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kubernetes.utils.quantity import parse_quantity

from fairlead.config import load
from fairlead.errors import EXIT_CODE, Stalled, StoppedByGate
from fairlead.k8s.manifests import Target, checkout, job_spec, render
from fairlead.transports.rollouts.redis_connection import GROUP, Keys
from tests.rendered import (
    MODEL_SERVICES,
    VARIANTS,
    container,
    data_of,
    needs_kubectl,
    of_kind,
    probes,
    rendered,
    templates,
)
from trainer.distributed import launch

pytestmark = needs_kubectl


@pytest.fixture(params=VARIANTS)
def objects(request):
    return rendered(request.param)


def test_pods_meet_the_restricted_standard(objects):
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
        requests, limits = found["resources"]["requests"], found["resources"]["limits"]
        assert {"cpu", "memory"} <= set(requests)
        assert "memory" in limits
        for resource, limit in limits.items():
            assert parse_quantity(requests.get(resource, limit)) <= parse_quantity(limit), resource
        assert "/tmp" in {mount["mountPath"] for mount in found["volumeMounts"]}
        for volume in spec["volumes"]:
            assert "hostPath" not in volume
            assert volume.get("emptyDir", {"sizeLimit": ""}).keys() >= {"sizeLimit"}
        assert "volumeMounts" in found
    for name in MODEL_SERVICES:
        mounts = {one["mountPath"]: one for one in container(templates(objects)[name])["volumeMounts"]}
        assert mounts["/fairlead"]["readOnly"] is True


def test_quotas_find_requests_and_limits_in_every_container(objects):
    """A quota refuses a pod if one of its containers, also of those that start first, sets no number."""
    for name, template in templates(objects).items():
        for one in (*template["spec"]["containers"], *template["spec"].get("initContainers", ())):
            assert one["resources"]["requests"].keys() >= {"cpu", "memory"}, (name, one["name"])
            assert "memory" in one["resources"]["limits"], (name, one["name"])
            assert one["securityContext"]["readOnlyRootFilesystem"] is True, (name, one["name"])


@pytest.mark.parametrize(("overlay", "largest"), [("gpu", 6), ("large", 32)])
def test_requests_of_cpu_are_what_the_page_says_of_limit_ranges(overlay, largest):
    found = max(
        parse_quantity(one["resources"]["requests"]["cpu"])
        for template in templates(rendered(overlay)).values()
        for one in template["spec"]["containers"]
    )
    assert found == parse_quantity(str(largest))
    page = (checkout().parent / "docs" / "kubernetes.md").read_text()
    default = re.search(r"kind: LimitRange\n.*?default: {cpu: \"(\d+)\"}", page, re.DOTALL)
    assert found <= int(default[1]) or f"\n{largest} with `{overlay}`." in page


def test_cluster_environment_contains_valid_settings(objects, tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(data_of(objects, "run-trainer")["run.toml"])
    for name, value in data_of(objects, "cluster").items():
        monkeypatch.setenv(name, value)
    config = load(tmp_path / "run.toml")
    assert config.folder.root == Path("/fairlead/runs/run")
    assert config.data_path("prompts.jsonl") == Path("/fairlead/data/prompts.jsonl")
    assert config.data_path("../runs/quickstart/data/x") == Path("/fairlead/runs/quickstart/data/x")
    for name in MODEL_SERVICES:
        section, template = getattr(config, name), templates(objects)[name]
        limits = config.server_limits(name)
        assert 30 <= limits.max_connection_age_seconds <= 300, "or clients never find new replicas"
        assert limits.drain_seconds >= section.timeout_seconds, "the longest call"
        sleep = container(template)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert template["spec"]["terminationGracePeriodSeconds"] >= sleep + limits.drain_seconds + 10
    worker = templates(objects)["rollout-worker"]["spec"]
    assert worker["terminationGracePeriodSeconds"] >= config.rollout_worker.drain_seconds + 10
    gateway = templates(objects)["gateway"]
    sleep = container(gateway)["lifecycle"]["preStop"]["sleep"]["seconds"]
    limits = config.server_limits("gateway")
    assert limits.drain_seconds >= config.gateway.timeout_seconds
    assert gateway["spec"]["terminationGracePeriodSeconds"] >= sleep + limits.drain_seconds + 10
    assert "password" not in "".join(data_of(objects, "cluster")).lower()


def test_probes_use_the_right_endpoints(objects):
    found = {name: dict(probes(template)) for name, template in templates(objects).items()}
    for name, port in MODEL_SERVICES.items():
        if "FAIRLEAD_TLS__CERTIFICATE" in data_of(objects, "cluster"):
            # gRPC probes do not support TLS.
            assert set(found[name]) == {"livenessProbe", "readinessProbe"}
            assert found[name]["readinessProbe"]["httpGet"] == {"port": "metrics", "path": "/readyz"}
            assert found[name]["livenessProbe"]["httpGet"] == {"port": "metrics", "path": "/healthz"}
            continue
        assert found[name]["readinessProbe"]["grpc"] == {"port": port}
        for probe in ("startupProbe", "livenessProbe"):
            # Not the health of the whole server, which for the policy depends on the trainer.
            assert found[name][probe]["grpc"] == {"port": port, "service": "liveness"}
        startup = found[name]["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800, "a large model loads slowly"
    for name in ("rollout-worker", "gateway", "trainer"):
        assert found[name]["livenessProbe"]["httpGet"]["path"] == "/healthz", "/readyz asks others"
    for name in ("rollout-worker", "gateway"):
        assert found[name]["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert "redis" not in found or set(found["redis"]) == {
        *("startupProbe", "livenessProbe", "readinessProbe"),
    }


@pytest.mark.parametrize("variant", ["kind, keys, tls", "everything"])
def test_keys_and_certificates_are_mounted_where_settings_expect_them(variant, tmp_path, monkeypatch):
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
        # Whole folders: the kubelet does not update a file that is mounted by a subPath.
        mounts = [mount for mount in container(template)["volumeMounts"] if mount["name"] in secrets]
        assert all(mount["readOnly"] and "subPath" not in mount for mount in mounts)
        mounted[name] = {
            f"{mount['mountPath']}/{file}" for mount in mounts for file in wanted[secrets[mount["name"]]]
        }
        shows = {source.get("secretRef", {}).get("name") for source in container(template).get("envFrom", ())}
        assert ("fairlead-api-key" in shows) is (name in ("rollout-worker", "trainer", "gateway")), name
    env = {one["name"]: one for one in container(templates(objects)["policy"]).get("env", ())}
    if variant == "everything":  # weights over gRPC included
        key = env["FAIRLEAD_API_KEY"]["valueFrom"]["secretKeyRef"]
        assert (key["name"], key["key"]) == ("fairlead-weights-key", "FAIRLEAD_API_KEY")
        assert env["FAIRLEAD_TLS__SERVER_NAME"]["value"] == "policy"
        assert env["FAIRLEAD_WEIGHTS__RELAY_ADDRESS"]["value"] == "$(POD_IP):5001"
    else:
        assert "FAIRLEAD_API_KEY" not in env
    certificate = {settings[f"FAIRLEAD_TLS__{name}"] for name in ("CERTIFICATE", "KEY", "CA")}
    for name in (*MODEL_SERVICES, "rollout-worker", "trainer", "weights"):
        assert certificate <= mounted[name], name
    for name in (*MODEL_SERVICES, "weights"):
        assert settings["FAIRLEAD_KEYS__FILE"] in mounted[name], name
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run.toml").write_text(data_of(objects, "run-trainer")["run.toml"])
    config = load(tmp_path / "run.toml")
    assert (config.tls.on, config.tls.mutual, config.keys.allow_insecure) == (True, True, False)
    assert "fl_" not in "".join(settings.values())


def test_trainer_job_distinguishes_mistakes_from_other_failures(objects):
    owner = of_kind(objects, "Job", "JobSet")["trainer"]
    job = job_spec(owner)
    assert job["completionMode"] == "Indexed"
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    *ignored, failed = job["podFailurePolicy"]["rules"]
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    # A JobSet restarts all pods then, too.
    assert ignored == (
        [{"action": "Ignore", "onPodConditions": [disrupted]}] if owner["kind"] == "Job" else []
    )
    assert failed["action"] == "FailJob"
    # Only `fairlead iterate` ends by a gate.
    final = {code for kind, code in EXIT_CODE.items() if kind not in (Stalled, StoppedByGate)}
    assert set(failed["onExitCodes"]["values"]) == final
    assert failed["onExitCodes"]["containerName"] == container(job["template"])["name"]


def test_queue_keeps_its_data():
    objects = rendered("kind")
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
    repository, _, tag = container(redis)["image"].partition("@")[0].rpartition(":")
    assert (repository, int(tag.partition(".")[0]) >= 8) == ("docker.io/valkey/valkey", True)


@pytest.mark.parametrize("variant", ["gpu", "large", "kind, gpu", "everything"])
def test_gpu_component_requests_gpus(variant):
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


def test_keda_counts_waiting_and_pending_tasks():
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
    variables = {one["name"]: one.get("value") for one in container(policy)["env"]}
    assert variables["FAIRLEAD_WEIGHTS__RELAY_ADDRESS"] == "$(POD_IP):5001"
    assert variables["FAIRLEAD_WEIGHTS__CACHE"] in {
        mount["mountPath"] for mount in container(policy)["volumeMounts"] if not mount.get("readOnly")
    }
    section = load().weights
    assert section.transport == "grpc"
    assert section.addresses == ("dns:///weights:5004",)
    assert section.bind == "0.0.0.0:5004"
    for template in (policy, weights):
        opened = {port["name"]: port["containerPort"] for port in container(template)["ports"]}
        assert opened["direct"] == section.direct_port > 0
    sleep = container(weights)["lifecycle"]["preStop"]["sleep"]["seconds"]
    for variable in container(weights)["env"]:
        if "value" in variable:
            monkeypatch.setenv(variable["name"], variable["value"])
    drain_seconds = load().server_limits("weights").drain_seconds
    assert weights["spec"]["terminationGracePeriodSeconds"] >= sleep + drain_seconds + 10
    assert dict(probes(weights))["livenessProbe"]["grpc"] == {"port": 5004, "service": "liveness"}
    (claimed,) = [
        one for one in templates(rendered("kind"))["policy"]["spec"]["volumes"] if one["name"] == "fairlead"
    ]
    assert "persistentVolumeClaim" in claimed


def test_images_match_the_dockerfiles_and_run_unprivileged():
    objects = rendered("large")
    folder = checkout().parent / "docker"
    images = {name: container(template)["image"] for name, template in templates(objects).items()}
    used = {re.fullmatch(r"registry.test/team/fairlead-(\w+):[\w.]+", one) for one in images.values()}
    assert {match[1] for match in used if match} == {path.stem for path in folder.glob("*.Dockerfile")}
    for path in folder.glob("*.Dockerfile"):
        text = path.read_text()
        assert "\nUSER 10001:10001\n" in text
        assert 'ENTRYPOINT ["/usr/bin/tini", "--"]' in text
        assert not re.search(r"^(ARG|ENV) .*(PASSWORD|TOKEN|SECRET)", text, re.MULTILINE)
    images["feedback"] = container(templates(rendered("kind, feedback"))["feedback"])["image"]
    for name in ("rollout-worker", "gateway", "feedback"):
        assert images[name].split("/")[-1].startswith("fairlead-light")


def test_a_job_set_replaces_the_job_and_restarts_all_of_its_pods():
    objects = rendered("gpu, ranks, jobset")
    assert of_kind(objects, "Job") == {}
    job_set = of_kind(objects, "JobSet")["trainer"]
    single = of_kind(rendered("gpu"), "Job")["trainer"]["spec"]
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] == single["backoffLimit"]
    assert job_spec(job_set)["backoffLimit"] == 0
    assert job_spec(job_set)["podFailurePolicy"]["rules"] == single["podFailurePolicy"]["rules"][1:]


def test_run_whose_trainer_computes_reference_logprobs_has_no_reference_service():
    overrides = {"reference.engine": "trainer", "ppo.lora.rank": 8}
    target = Target(overlay="kind", namespace="fairlead", registry="registry.test/team")
    names = {one["metadata"]["name"] for one in render(load(overrides=overrides), target)}
    assert "reward" in names
    assert not any("reference" in name for name in names)


def test_pods_of_a_large_model_have_the_gpus_of_its_file():
    config = load(checkout().parent / "configs" / "llama70b.toml")
    target = Target(overlay="large", namespace="fairlead", registry="registry.test/team")
    objects = render(config, target)
    pods = templates(objects)
    limits = {name: container(pods[name])["resources"]["limits"] for name in ("trainer", "policy", "reward")}
    assert {name: limit["nvidia.com/gpu"] for name, limit in limits.items()} == {
        "trainer": "8",
        "policy": "4",
        "reward": "1",
    }
    assert of_kind(objects, "Job")["trainer"]["spec"]["completions"] == 2
    assert container(pods["policy"])["image"].startswith("registry.test/team/fairlead-vllm:")
    (shared,) = [one for one in pods["policy"]["spec"]["volumes"] if one["name"] == "shm"]
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    # /dev/shm counts towards the memory of its pod.
    assert limits["policy"]["memory"] == "64Gi"


@pytest.mark.parametrize("variant", ["gpu, ranks", "gpu, ranks, jobset"])
def test_ranks_of_the_trainer_are_pods_with_a_launcher_and_its_gpus(variant, tmp_path, monkeypatch):
    owner = of_kind(rendered(variant), "Job", "JobSet")["trainer"]
    job = job_spec(owner)
    single = of_kind(rendered("gpu"), "Job")["trainer"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    if owner["kind"] == "Job":
        assert job["backoffLimit"] == 2 * single["backoffLimit"]
        assert job["podFailurePolicy"] == single["podFailurePolicy"]
    assert single["completions"] == 1
    assert container(single["template"])["args"][:3] == ["python", "-m", "trainer.ppo"]
    found = container(job["template"])
    assert found["args"][:4] == ["python", "-m", "trainer.distributed.launch", "trainer.ppo"]
    assert found["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "/dev/shm" in {mount["mountPath"] for mount in found["volumeMounts"]}
    services = of_kind(rendered("gpu, ranks"), "Deployment")
    gpus = {
        name: container(services[name]["spec"]["template"])["resources"]["limits"]["nvidia.com/gpu"]
        for name in MODEL_SERVICES
    }
    assert gpus == {"policy": "1", "reward": "4", "reference": "1"}
    # The place of every rank, as the launcher in each pod computes it.
    (tmp_path / "run.toml").write_text(data_of(rendered(variant), "run-trainer")["run.toml"])
    for variable in found["env"]:
        if "value" in variable:
            monkeypatch.setenv(variable["name"], variable["value"])
    config = load(tmp_path / "run.toml")
    environments = {}
    for index in ("0", "1"):
        place = launch.node(config.ranks, {"JOB_COMPLETION_INDEX": index})
        environments |= launch.environments(config, "ppo", place, {})
    assert [int(one["RANK"]) for one in environments.values()] == list(range(16))
    assert {one["WORLD_SIZE"] for one in environments.values()} == {"16"}
    host = {one["MASTER_ADDR"] for one in environments.values()}
    # The controller names the pods of an Indexed Job NAME-0, and the Job of a JobSet SET-NAME-0.
    first = {"Job": "trainer-0", "JobSet": "trainer-ranks-0-0"}[owner["kind"]]
    assert host == {f"{first}.{job['template']['spec']['subdomain']}"}
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert {one["MASTER_PORT"] for one in environments.values()} == {str(ports["ranks"])}
