"""The cluster's API: one request at a time, each with a deadline.

Between the verbs and the kubernetes client, of which it uses the login and the transport. It asks the cluster
for the path of a kind, so objects of extensions are no different from its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import urllib3
import yaml

from fairlead.errors import ClusterRefused, ConfigError
from fairlead.k8s.manifests import OURS, Manifest
from fairlead.k8s.refusals import Forbidden, NotFound, no_answer, refusal

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

FIELD_MANAGER = "fairlead"
"""Who owns the fields that `up` sets."""
_APPLY_PATCH = "application/apply-patch+yaml"
_MERGE_PATCH = "application/merge-patch+json"


@dataclass(slots=True)
class Cluster:
    """A connection to one namespace of one cluster."""

    client: DynamicClient
    """Login and transport."""
    namespace: str
    """Where everything is that is named here."""
    timeout_seconds: float = 30.0
    """Deadline of one request."""
    _plurals: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def connect(
        cls, namespace: str, *, kubeconfig: str | None, context: str | None, timeout_seconds: float
    ) -> Cluster:
        """Reads the kubeconfig; inside a pod without one, the pod's own account. Asks the cluster nothing.

        Raises:
            ConfigError: without either, or for one that cannot be read.
        """
        from kubernetes import client, config
        from kubernetes.dynamic import DynamicClient

        # The library reads this variable only once, when it is imported.
        file = kubeconfig or os.environ.get("KUBECONFIG")
        settings = client.Configuration()
        # To try again is the caller's.
        settings.retries = False
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ and not file:
                config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
            else:
                config.load_kube_config(  # type: ignore[no-untyped-call]
                    file, context, settings, persist_config=False
                )
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
            reason = str(error).removeprefix("Invalid kube-config file. ").partition("\n")[0]
            raise ConfigError(
                f"kubeconfig {file or '~/.kube/config'}",
                got=reason,
                allowed="a kubeconfig that leads to a cluster (`kubectl cluster-info` tries it)",
            ) from None
        # The discovery of the library asks for everything there is, and without a deadline.
        api = DynamicClient(  # type: ignore[no-untyped-call]
            client.ApiClient(settings), discoverer=lambda client, cache_file: None
        )
        return cls(api, namespace, timeout_seconds)

    @property
    def host(self) -> str:
        """Where the API is, for messages."""
        return str(self.client.configuration.host)

    def get(self, api_version: str, kind: str, name: str) -> Manifest | None:
        """An object, or None if there is none of that name."""
        try:
            return self._request("GET", self.path(api_version, kind, name), what=f"read {kind} {name}")
        except NotFound:
            return None

    def list(self, api_version: str, kind: str, selector: str = OURS) -> list[Manifest]:
        """The objects of a kind in the namespace that a label selector finds."""
        answer = self._request(
            "GET", self.path(api_version, kind), what=f"list {kind}", query={"labelSelector": selector}
        )
        return list(answer.get("items") or ())

    def apply(self, manifest: Manifest, *, force_conflicts: bool = False) -> Manifest:
        """Makes an object what its manifest says, by server-side apply.

        Raises:
            Immutable: for a change that only a new object could have.
            ClusterRefused: among others for fields that someone else owns; names who and which.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        return self._request(
            "PATCH",
            self.path(manifest["apiVersion"], kind, name),
            what=f"apply {kind} {name}",
            query={"fieldManager": FIELD_MANAGER, "force": str(force_conflicts).lower()},
            body=manifest,
            content_type=_APPLY_PATCH,
        )

    def scale(self, kind: str, name: str, replicas: int) -> None:
        """Sets how many pods a Deployment has."""
        self._request(
            "PATCH",
            f"{self.path('apps/v1', kind, name)}/scale",
            what=f"scale {kind} {name}",
            query={"fieldManager": FIELD_MANAGER},
            body={"spec": {"replicas": replicas}},
            content_type=_MERGE_PATCH,
        )

    def delete(self, api_version: str, kind: str, name: str) -> None:
        """Deletes an object and, after it, what belongs to it; nothing if it is gone already."""
        try:
            self._request(
                "DELETE",
                self.path(api_version, kind, name),
                what=f"delete {kind} {name}",
                query={"propagationPolicy": "Background"},
            )
        except NotFound:
            return

    def check_namespace(self, *, create: bool) -> None:
        """Makes sure that the namespace is there.

        Raises:
            ClusterRefused: if it is not, and shall not be made.
        """
        path = f"/api/v1/namespaces/{self.namespace}"
        try:
            self._request("GET", path, what=f"read namespace {self.namespace}")
        except Forbidden:
            return  # Who may only look into a namespace learns soon enough whether it is there.
        except NotFound:
            if not create:
                raise ClusterRefused(
                    f"the cluster has no namespace {self.namespace}: --create-namespace makes it, "
                    "--namespace takes another"
                ) from None
            body = {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": self.namespace,
                    "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
                },
            }
            what = f"create namespace {self.namespace}"
            query = {"fieldManager": FIELD_MANAGER}
            self._request("PATCH", path, what=what, query=query, body=body, content_type=_APPLY_PATCH)

    def path(self, api_version: str, kind: str, name: str = "") -> str:
        """The URL's path of a kind, or of one object of it.

        Raises:
            NotFound: if the cluster does not know the kind.
        """
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        if (api_version, kind) not in self._plurals:
            try:
                known = self._request("GET", root, what=f"discover {api_version}").get("resources", ())
            except NotFound:
                known = ()
            self._plurals |= {
                (api_version, one["kind"]): one["name"] for one in known if "/" not in one["name"]
            }
        plural = self._plurals.get((api_version, kind))
        if plural is None:
            raise NotFound(
                f"the cluster at {self.host} does not know {kind} ({api_version}): install what brings it, "
                "or leave that component out"
            )
        return "/".join((root, "namespaces", self.namespace, plural, *([name] if name else ())))

    def _request(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        from kubernetes.client.exceptions import ApiException

        try:
            answer = self.client.request(
                method,
                path,
                body=body,
                query_params=list((query or {}).items()),
                content_type=content_type,
                header_params={},
                serialize=False,
                _request_timeout=self.timeout_seconds,
            )
        except ApiException as error:
            raise refusal(error, what, host=self.host, namespace=self.namespace) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise no_answer(error, what, host=self.host, seconds=self.timeout_seconds) from None
        found = json.loads(answer.data)
        assert isinstance(found, dict)
        return found
