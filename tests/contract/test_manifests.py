"""The manifests: each variant renders, matches the schemas of Kubernetes, and its parts are consistent."""

from __future__ import annotations

import itertools
import json

import pytest
import yaml

from fairlead.config import load
from fairlead.k8s import manifests
from fairlead.k8s.labels import COMPONENT, NAME, PART_OF
from fairlead.k8s.manifests import (
    JOB_SET,
    Target,
    as_yaml,
    checkout,
    job_spec,
    kustomize,
    render,
)
from fairlead.k8s.settings import pod_templates
from tests.kubernetes_schemas import NEWEST, mistake
from tests.published_schemas import faults, is_of_extension
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

pytestmark = needs_kubectl

COMPONENTS = {
    "shared": (),
    "files": ("files",),
    "queue": ("redis",),
    "model-service": (*MODEL_SERVICES, "policy-node"),
    "worker": ("rollout-worker",),
    "gateway": ("gateway",),
    "trainer": ("trainer",),
    "weights": ("weights",),
    "feedback": ("feedback",),
    "backup": ("backup", "backup-feedback", "restore-feedback"),
    "autoscaler": (),
    "monitoring": (),
    "network": (),
    "namespace": (),
    "rights": (),
    "certificate": (),
}
"""Processes by the label that `down`, `scale`, stages and patches select."""

OVERLAYS = sorted((checkout() / "overlays").iterdir())
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OLDEST = "1.30"
"""A version of Kubernetes; it is the first with `preStop.sleep` enabled by default."""


@pytest.fixture(params=VARIANTS)
def objects(request):
    return rendered(request.param)


def test_every_overlay_and_component_is_among_the_variants():
    shipped = {one.name for one in (*OVERLAYS, *(checkout() / "components").iterdir())}
    used = {name for overlay, components in VARIANTS.values() for name in (overlay, *components)}
    assert used == shipped - {"namespace"}, "every overlay has the component namespace"


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{one.name}" for one in OVERLAYS)])
def test_folder_renders_on_its_own(folder):
    assert {"policy", "trainer", "redis"} <= set(templates(kustomize(checkout() / folder)))


def test_strict_schemas(objects):
    for manifest, version in itertools.product(objects, (OLDEST, NEWEST)):
        needs = NEWEST if '"image": {' in json.dumps(manifest) else OLDEST
        if not is_of_extension(manifest) and version >= needs:
            assert mistake(manifest, version) == ""
    for manifest in objects:
        if is_of_extension(manifest):
            assert faults(manifest) == []
        if manifest["kind"] == "LeaderWorkerSet":
            for template in pod_templates(manifest):
                pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
                assert mistake(pod | {"metadata": {}}, OLDEST) == ""
        if manifest["kind"] == "JobSet":
            assert (manifest["apiVersion"], manifest["kind"]) == JOB_SET
            (ranks,) = manifest["spec"]["replicatedJobs"]
            job = {"apiVersion": "batch/v1", "kind": "Job", **ranks["template"]}
            for version in (OLDEST, NEWEST):
                if version == NEWEST or '"image": {' not in json.dumps(job):
                    assert mistake(job, version) == ""


def test_objects_are_labelled_and_in_the_namespace(objects):
    for manifest in objects:
        labels = manifest["metadata"]["labels"]
        assert labels[PART_OF] == "fairlead"
        assert labels[COMPONENT] in COMPONENTS
        assert labels["app.kubernetes.io/instance"] == "run"
        where = manifest["metadata"]
        assert where["name" if manifest["kind"] == "Namespace" else "namespace"] == "fairlead"
    for name, template in templates(objects).items():
        assert template["metadata"]["labels"][NAME] == name
        assert template["metadata"]["labels"]["app.kubernetes.io/instance"] == "run"
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
    optional = {"feedback", "redis"} & set(labels)
    assert set(budgets) == {*MODEL_SERVICES, "rollout-worker", "gateway"} | optional
    for name, manifest in budgets.items():
        assert selected(manifest["spec"]["selector"]["matchLabels"]) == {name}
        assert manifest["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for name, manifest in of_kind(objects, "Service").items():
        assert selected(manifest["spec"]["selector"]) == {name}
    for name, manifest in of_kind(objects, "HorizontalPodAutoscaler").items():
        target = manifest["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"], name in of_kind(objects, "Deployment")) == (
            "Deployment",
            name,
            True,
        )
    for manifest in of_kind(objects, "PodMonitor").values():
        monitored = selected(manifest["spec"]["selector"]["matchLabels"])
        endpoint = manifest["spec"]["podMetricsEndpoints"][0]["port"]
        ports = {
            name
            for name, template in templates(objects).items()
            if endpoint in {port["name"] for port in container(template).get("ports", ())}
        }
        assert monitored - ports == {"redis", "files", "backup"} & set(labels)


def test_ports_of_services_containers_probes_and_addresses_match(objects):
    found = templates(objects)
    for name, manifest in of_kind(objects, "Service").items():
        # HTTP clients do not balance, so these Services are not headless.
        assert manifest["spec"].get("clusterIP") == (None if name in ("gateway", "feedback") else "None")
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
    if "redis" in found:
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
            # The claim of the feedback service's pod is made by its StatefulSet.
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "fairlead") in (
                *claims,
                *(f"data-{one}-0" for one in {"feedback"} & set(of_kind(objects, "StatefulSet"))),
            )
        for source in container(template).get("envFrom", ()):
            made_by_hand = source.get("secretRef", {}).get("name") == "fairlead-api-key"
            assert made_by_hand or source["configMapRef"]["name"] in maps
        for variable in container(template).get("env", ()):
            source = variable.get("valueFrom", {})
            reference = source.get("secretKeyRef", {"name": "redis", "key": "password"})
            name = reference["name"]
            made_by_hand = {
                *("fairlead-weights-key", "fairlead-hub", "fairlead-feedback-store", "fairlead-redis"),
            }
            assert name in made_by_hand or (name, reference["key"] in secret) == ("redis", True)
            assert reference.get("optional", False) is (name == "fairlead-weights-key")
    for manifest in of_kind(objects, "TriggerAuthentication").values():
        for reference in manifest["spec"]["secretTargetRef"]:
            of_queue = "redis" if "redis" in templates(objects) else "fairlead-redis"
            assert (reference["name"], reference["key"] in secret) == (of_queue, True)
    for name, manifest in of_kind(objects, "StatefulSet").items():
        assert manifest["spec"]["serviceName"] in of_kind(objects, "Service")
        claim = {one["metadata"]["name"] for one in manifest["spec"].get("volumeClaimTemplates", ())}
        mounted = {mount["name"] for mount in container(manifest["spec"]["template"])["volumeMounts"]}
        assert claim == {"data"} & mounted, name
    job = job_spec(of_kind(objects, "Job", "JobSet")["trainer"])
    service = of_kind(objects, "Service")[job["template"]["spec"]["subdomain"]]
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_routes_lead_to_ports_of_services(objects):
    ports = {
        name: {str(port[key]) for port in one["spec"]["ports"] for key in ("name", "port")}
        for name, one in of_kind(objects, "Service").items()
    }
    for name, route in of_kind(objects, "HTTPRoute", "Ingress").items():
        (rule,) = route["spec"]["rules"]
        hosts = route["spec"]["hostnames"] if route["kind"] == "HTTPRoute" else [rule["host"]]
        assert hosts == [f"{name}.test"]
        if route["kind"] == "HTTPRoute":
            target, port = rule["backendRefs"][0]["name"], str(rule["backendRefs"][0]["port"])
        else:
            service = rule["http"]["paths"][0]["backend"]["service"]
            target, port = service["name"], service["port"]["name"]
            assert route["spec"]["tls"] == [{"hosts": hosts, "secretName": f"{name}-tls"}]
        assert (target, port in ports[target]) == (name, True)


def test_deployments_set_no_number_of_replicas(objects):
    assert [name for name, one in of_kind(objects, "Deployment").items() if "replicas" in one["spec"]] == []


def test_gitops_tools_replace_the_trainer_and_never_delete_volumes(objects):
    (trainer,) = of_kind(objects, "Job", "JobSet").values()
    assert trainer["metadata"]["annotations"] == {
        "argocd.argoproj.io/sync-options": "Replace=true,Force=true",
        "kustomize.toolkit.fluxcd.io/force": "enabled",
    }
    for kept in (
        *of_kind(objects, "Namespace").values(),
        *of_kind(objects, "PersistentVolumeClaim").values(),
    ):
        assert kept["metadata"]["annotations"] == {
            "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
            "kustomize.toolkit.fluxcd.io/prune": "disabled",
        }
    labels = of_kind(objects, "Namespace")["fairlead"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_process_mounts_only_its_own_settings(objects):
    maps = {name for name in of_kind(objects, "ConfigMap") if name.startswith("run-")}
    mounted = {
        # The nodes of a policy have one file.
        volume["configMap"]["name"]: name.removesuffix("-node")
        for name, template in templates(objects).items()
        for volume in template["spec"]["volumes"]
        if volume["name"] == "run" and "configMap" in volume
    }
    assert set(mounted) == maps, "and no ConfigMap of the whole file is left"
    assert all(one.startswith(f"run-{name}-") for one, name in mounted.items())


def test_kind_fits_a_machine_with_two_cores():
    requests = [
        container(one)["resources"]["requests"]["cpu"] for one in templates(rendered("kind")).values()
    ]
    assert sum(int(one.removesuffix("m")) for one in requests) <= 800, "kind itself requests 950m"


def test_rendering_twice_gives_the_same_text(tmp_path, monkeypatch):
    text = as_yaml(rendered("everything"))
    assert list(yaml.load_all(text, Loader=LOADER)) == list(rendered("everything"))
    assert "\n  run.toml: |\n" in text, "a diff shows the settings that change"
    assert text.startswith("apiVersion: v1\nkind: Namespace\n"), "before the objects in it"
    monkeypatch.setattr(manifests, "kustomize", kustomize)
    monkeypatch.chdir(tmp_path)
    assert as_yaml(rendered.__wrapped__("everything")) == text


def test_yaml_files_have_one_document_each():
    for path in checkout().rglob("*.yaml"):
        assert len(list(yaml.load_all(path.read_text(), Loader=LOADER))) == 1, path


@needs_kubectl
def test_metrics_over_tls_have_a_monitor_and_probes_that_use_it():
    config = load(None, overrides={"observe.metrics_tls": True})
    objects = render(
        config,
        Target(
            overlay="kind",
            components=("monitoring", "tls"),
            namespace="fairlead",
            registry="registry.test/team",
        ),
    )
    (monitor,) = of_kind(objects, "PodMonitor").values()
    endpoint, exporter = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["scheme"], exporter.get("scheme")) == ("https", None)
    secrets = [endpoint["tlsConfig"][key]["secret"] for key in ("ca", "cert")]
    assert [secret["key"] for secret in secrets] == ["ca.crt", "tls.crt"]
    mounted = {
        volume["secret"]["secretName"]
        for template in templates(objects).values()
        for volume in template["spec"].get("volumes", ())
        if "secret" in volume
    }
    assert {secret["name"] for secret in secrets} <= mounted
    probes = [
        probe["httpGet"]
        for template in templates(objects).values()
        for name, probe in container(template).items()
        if name.endswith("Probe") and probe.get("httpGet", {}).get("port") == "metrics"
    ]
    assert len(probes) > 5
    assert {probe.get("scheme") for probe in probes} == {"HTTPS"}
