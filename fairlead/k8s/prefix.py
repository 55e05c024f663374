"""Objects of one run among several in a namespace: names with a prefix, selectors that match only its own.

Works on rendered objects of any component. A reference to an object of the run gets the
prefix; other references (Secrets that a person creates, services of another run) stay.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fairlead.errors import ConfigError
from fairlead.k8s.labels import INSTANCE, PART_OF, WITH_PREFIX, WITHOUT_PREFIX

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?")
"""The longest names that are built from it, those of CronJobs, have at most 52 characters."""
_PASSWORDS = "redis"
"""The Secret that `up` creates for each run. A person creates the others for all runs of the namespace; those
of Ingresses and those that cert-manager creates belong to one run.
"""
_OF_THE_NAMESPACE = ("Namespace", "Role")
_DASHBOARD = "grafana_dashboard"

# What a reference names, by the key of the object that has the name.
_REFERENCES: Mapping[str, tuple[str, str]] = {
    "configMap": ("name", "ConfigMap"),
    "configMapRef": ("name", "ConfigMap"),
    "configMapKeyRef": ("name", "ConfigMap"),
    "secret": ("secretName", "Secret"),
    "keySecret": ("secretName", "Secret"),
    "tls": ("secretName", "Secret"),
    "spec": ("secretName", "Secret"),
    "secretRef": ("name", "Secret"),
    "secretKeyRef": ("name", "Secret"),
    "secretTargetRef": ("name", "Secret"),
    "persistentVolumeClaim": ("claimName", "PersistentVolumeClaim"),
    "authenticationRef": ("name", "TriggerAuthentication"),
    "service": ("name", "Service"),
    "backendRefs": ("name", "Service"),
}
_NAMES_OF: Mapping[str, str] = {
    "serviceAccountName": "ServiceAccount",
    "serviceName": "Service",
    "subdomain": "Service",
}
_METRIC = re.compile(
    r"(?<![\w:\"])(fairlead[_:][\w:]+|(?:grpc_server|process|redis)_[a-z_]+|up)(?![\w:\"(])(\{)?",
)


def check_run_name(name: str) -> None:
    """Check that a run's name can be a prefix of names of objects.

    Raises:
        ConfigError: it cannot; proposes one that can.
    """
    if _NAME.fullmatch(name):
        return
    proposal = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:30].strip("-")
    hint = f", such as {proposal}" if proposal else ""
    raise ConfigError(
        "name",
        got=name,
        allowed=f"1 to 30 lower-case letters, digits and hyphens, with a letter first{hint}",
    )


def prefixed(objects: Sequence[dict[str, Any]], run: str) -> list[dict[str, Any]]:
    """Return the objects of a run with a prefix; changes them.

    What belongs to the namespace or to all runs is left out: the Namespace, the operator's Role, dashboards.

    Args:
        objects: the objects as rendered, with the names of the manifests.
        run: name of the run.

    Raises:
        ConfigError: the name cannot be a prefix.
    """
    check_run_name(run)
    mine = [one for one in objects if not _is_shared(one)]
    names = {(one["kind"], one["metadata"]["name"]) for one in mine} | {("Secret", _PASSWORDS)}
    names |= {("Secret", one["spec"]["secretName"]) for one in mine if one["kind"] == "Certificate"}
    # Each run has its own host.
    names |= {("Secret", tls["secretName"]) for one in mine if one["kind"] == "Ingress" for tls in _tls(one)}
    rename = _Names(run, names)
    for manifest in mine:
        namespace = str(manifest["metadata"]["namespace"])
        metadata = manifest["metadata"]
        metadata["name"] = f"{run}-{metadata['name']}"
        rename.visit(manifest, namespace)
        if manifest["kind"] == "PodMonitor":
            _keep_job(manifest, namespace)
        if manifest["kind"] == "PrometheusRule":
            for rule in _rules(manifest):
                rule["expr"] = of_one_run(rule["expr"], namespace=namespace, run=run)
    return mine


def of_one_run(expression: str, *, namespace: str, run: str) -> str:
    """Return a PromQL expression whose series are those of one run."""
    matchers = f'namespace="{namespace}",run="{run}"'
    return _METRIC.sub(
        lambda found: f"{found[1]}{{{matchers}{',' if found[2] else '}'}",
        expression,
    )


def _is_shared(manifest: Mapping[str, Any]) -> bool:
    return manifest["kind"] in _OF_THE_NAMESPACE or _DASHBOARD in manifest["metadata"]["labels"]


class _Names:
    """Replaces the names of a run's objects wherever an object refers to them."""

    def __init__(self, run: str, names: Collection[tuple[str, str]]) -> None:
        self._run, self._names = run, names
        services = sorted((name for kind, name in names if kind == "Service"), key=len, reverse=True)
        # The pod of a Job or StatefulSet, a service, and the namespace: trainer-0.trainer.ns.svc:29500.
        self._host = re.compile(
            rf"(?<![\w.-])(?P<pod>[a-z0-9-]+\.)?(?P<service>{'|'.join(services) or '(?!)'})"
            r"(?P<rest>\.(?P<namespace>[a-z0-9-]+)\.svc[a-z.]*)?(?=:\d)"
        )

    def visit(self, value: object, namespace: str, key: str = "") -> None:
        """Replace the names in an object, or a part of one that its owner has under `key`."""
        if isinstance(value, list):
            for index, inner in enumerate(value):
                if isinstance(inner, str):
                    value[index] = self._addresses(inner, namespace)
                else:
                    self.visit(inner, namespace, key)
        elif isinstance(value, dict):
            self._labels(value)
            self._reference(value, key)
            for name, inner in value.items():
                if isinstance(inner, str):
                    value[name] = self._text(name, inner, namespace)
                else:
                    self.visit(inner, namespace, name)

    def _labels(self, value: dict[str, Any]) -> None:
        """Give labels and selectors the instance; those for all runs already have another `part-of`."""
        if value.get(PART_OF) == WITHOUT_PREFIX:
            value |= {PART_OF: WITH_PREFIX, INSTANCE: self._run}

    def _reference(self, value: dict[str, Any], key: str) -> None:
        field, kind = _REFERENCES.get(key, ("", ""))
        if key == "scaleTargetRef":
            field, kind = "name", value.get("kind", "Deployment")
        name = value.get(field)
        if field == "secretName" and name is None and key in ("secret", "keySecret"):  # of a PodMonitor
            field, name = "name", value.get("name")
        if isinstance(name, str):
            value[field] = self._claim(name) if kind == "PersistentVolumeClaim" else self._new(kind, name)

    def _new(self, kind: str, name: str) -> str:
        return f"{self._run}-{name}" if (kind, name) in self._names else name

    def _claim(self, name: str) -> str:
        """Return the new name of a claim, which may be one that a StatefulSet makes: data-redis-0."""
        template, _, rest = name.partition("-")
        owner, _, index = rest.rpartition("-")
        if index.isdigit() and ("StatefulSet", owner) in self._names:
            return f"{template}-{self._run}-{rest}"
        return self._new("PersistentVolumeClaim", name)

    def _text(self, key: str, text: str, namespace: str) -> str:
        if key in _NAMES_OF:
            return self._new(_NAMES_OF[key], text)
        return self._addresses(text, namespace)

    def _addresses(self, text: str, namespace: str) -> str:
        def new(found: re.Match[str]) -> str:
            if found["namespace"] not in (None, namespace):
                return found[0]
            pod = f"{self._run}-{found['pod']}" if found["pod"] else ""
            return f"{pod}{self._run}-{found['service']}{found['rest'] or ''}"

        return self._host.sub(new, text)


def _tls(ingress: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return ingress["spec"].get("tls") or ()


def _rules(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for group in manifest["spec"]["groups"]:
        yield from group["rules"]


def _keep_job(monitor: dict[str, Any], namespace: str) -> None:
    """Keep the label `job` that rules and dashboards expect: by default it has the name of the monitor."""
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        job = {"targetLabel": "job", "replacement": f"{namespace}/{WITHOUT_PREFIX}"}
        endpoint["relabelings"] = [*(endpoint.get("relabelings") or ()), job]
