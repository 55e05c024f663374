"""components/feedback and feedback-postgres: store, keys, address, stages and certificates of the service."""

from __future__ import annotations

from typing import Any

import pytest

from fairlead.config import RunConfig, load
from fairlead.errors import ConfigError
from fairlead.k8s.manifests import Manifest, Target, render
from tests.rendered import container, data_of, needs_kubectl, of_kind, probes, rendered, templates

pytestmark = needs_kubectl


def of_service(objects: tuple[Manifest, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, RunConfig]:
    """Return the container of the service, and its configuration with the environment of the pod."""
    found = container(templates(objects)["feedback"])
    variables = {one["name"]: one["value"] for one in found["env"] if "value" in one}
    for name, value in (data_of(objects, "cluster") | variables).items():
        monkeypatch.setenv(name, value)
    return found, load()


def render_with(*components: str, stage: str = "ppo", **feedback: Any) -> dict[str, Manifest]:
    """Return the objects of a run by kind and name."""
    config = load(overrides={f"feedback.{key}": value for key, value in feedback.items()})
    target = Target(overlay="kind", components=components, namespace="fairlead", stage=stage)
    return {f"{one['kind']} {one['metadata']['name']}": one for one in render(config, target)}


def test_one_pod_keeps_the_store_on_its_own_volume(monkeypatch):
    objects = rendered("kind, feedback")
    found, config = of_service(objects, monkeypatch)
    owner = of_kind(objects, "StatefulSet")["feedback"]["spec"]
    (claim,) = owner["volumeClaimTemplates"]
    assert (owner["replicas"], claim["spec"]["accessModes"]) == (1, ["ReadWriteOnce"])
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    writable = {one["mountPath"] for one in found["volumeMounts"] if not one.get("readOnly")}
    assert writable == {"/data", "/tmp"}
    assert config.feedback_store == "/data/feedback.db"
    # The copy of the file that VACUUM makes does not fit into /tmp.
    assert {"name": "SQLITE_TMPDIR", "value": "/data"} in found["env"]
    assert config.feedback.bind == f"0.0.0.0:{found['ports'][0]['containerPort']}"
    assert config.keys.file == "/etc/fairlead-keys/keys.json", "or nobody could invite the first person"
    assert "/etc/fairlead-keys" in {one["mountPath"] for one in found["volumeMounts"]}
    limits, sleep = config.server_limits("feedback"), found["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert limits.drain_seconds >= config.feedback.timeout_seconds
    assert owner["template"]["spec"]["terminationGracePeriodSeconds"] >= sleep + limits.drain_seconds + 10
    asked = {name: probe["httpGet"] for name, probe in probes(owner["template"])}
    assert asked.pop("readinessProbe") == {"path": "/readyz", "port": "metrics"}
    assert list(asked.values()) == [{"path": "/healthz", "port": "metrics"}] * 2
    (address,) = container(templates(objects)["gateway"])["env"]
    assert address == {"name": "FAIRLEAD_FEEDBACK__ADDRESSES", "value": '["feedback:8400"]'}


def test_replicas_share_a_database_whose_address_is_a_secret(monkeypatch):
    objects = rendered("everything")
    found, config = of_service(objects, monkeypatch)
    owner = of_kind(objects, "StatefulSet")["feedback"]["spec"]
    assert (owner["replicas"], "volumeClaimTemplates" in owner) == (2, False)
    assert "/data" not in {one["mountPath"] for one in found["volumeMounts"]}
    secret = {
        one["name"]: one["valueFrom"]["secretKeyRef"]["key"] for one in found["env"] if "valueFrom" in one
    }
    assert secret == {"FAIRLEAD_FEEDBACK__STORE": "store", "PGPASSWORD": "password"}
    # The same variant has the component tls: the ingress controller has no certificate of the run.
    assert config.feedback.tls == "server"
    assert "/etc/fairlead-tls" in {one["mountPath"] for one in found["volumeMounts"]}
    with pytest.raises(ConfigError, match="failed to find unique target for patch StatefulSet"):
        render_with("feedback-postgres")


def test_ingress_has_the_origin_of_the_file():
    found = render_with("feedback", origin="https://people.test:8443", root_path="/rank")
    ingress = found["Ingress feedback"]["spec"]
    assert ingress["tls"] == [{"hosts": ["people.test"], "secretName": "feedback-tls"}]
    (rule,) = ingress["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"]) == ("people.test", "/rank")
    (port,) = found["Service feedback"]["spec"]["ports"]
    assert path["backend"]["service"] == {"name": "feedback", "port": {"name": port["name"]}}
    with pytest.raises(ConfigError, match=r"feedback\.origin: got 'http://people\.test"):
        render_with("feedback", origin="http://people.test")


def test_service_is_optional_and_outlasts_stages():
    assert not [name for name in render_with(origin="https://people.test") if name.endswith(" feedback")]
    found = render_with("feedback", stage="files")
    pods = {name for name in found if name.startswith(("Deployment", "StatefulSet", "Job"))}
    assert pods == {"StatefulSet feedback", "Deployment files"}
    assert not [name for name in found if name.startswith("Ingress")], "without an origin"
