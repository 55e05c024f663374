"""The API of a cluster: requests with a deadline, and their failures as errors of `fairlead.errors`.

It uses authentication and transport of the kubernetes client. The path of a kind comes from the API's
discovery documents, so that objects of extensions are treated like built-in ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import urllib3
import yaml

from fairlead.errors import ClusterRefused, ConfigError, DeadlineExceeded, FairleadError, Unavailable
from fairlead.k8s import labels
from fairlead.k8s.manifests import Manifest

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

FIELD_MANAGER = "fairlead"
"""Owner of the fields that `up` sets."""
_APPLY_PATCH = "application/apply-patch+yaml"
_MERGE_PATCH = "application/merge-patch+json"
QUIET_SECONDS = 60.0
"""A log without a new line for this long is requested again: a connection that is lost is silent, too."""


class ObjectNotFound(ClusterRefused):
    """The object or its kind does not exist."""


class ObjectExists(ClusterRefused):
    """An object of this name exists already."""


class ClusterForbidden(ClusterRefused):
    """The account lacks the permission for the request."""


class ImmutableObject(ClusterRefused):
    """The change is possible only in a new object."""


@dataclass(slots=True)
class Cluster:
    """A connection to one run in one namespace of one cluster."""

    client: DynamicClient
    """Authentication and transport."""
    namespace: str
    """The namespace of every object that is read or changed."""
    timeout_seconds: float = 30.0
    """Deadline of one request."""
    run: str = ""
    """Name of the run, if its objects have it as a prefix."""
    _plurals: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def connect(
        cls,
        namespace: str,
        *,
        run: str = "",
        kubeconfig: str | None,
        context: str | None,
        timeout_seconds: float,
    ) -> Cluster:
        """Read the kubeconfig, or use the pod's own account inside a pod without one; send no request.

        Raises:
            ConfigError: if there is neither, or the kubeconfig cannot be read.
        """
        from kubernetes import client, config
        from kubernetes.dynamic import DynamicClient

        # The library itself reads this variable only once, when it is imported.
        file = kubeconfig or os.environ.get("KUBECONFIG")
        settings = client.Configuration()
        # The caller decides whether to retry.
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
                allowed="a kubeconfig that reaches a cluster (test it with `kubectl cluster-info`)",
            ) from None
        # The library's own discovery requests every API group, without a deadline.
        api = DynamicClient(  # type: ignore[no-untyped-call]
            client.ApiClient(settings), discoverer=lambda client, cache_file: None
        )
        return cls(api, namespace, timeout_seconds, run)

    @property
    def ours(self) -> str:
        """Label selector of the objects of the run."""
        return labels.selector(self.run)

    def named(self, name: str) -> str:
        """Return the name of an object of the run, which the manifests call `name`."""
        return f"{self.run}-{name}" if self.run else name

    @property
    def host(self) -> str:
        """Address of the API, for messages."""
        return str(self.client.configuration.host)

    def get(self, api_version: str, kind: str, name: str) -> Manifest | None:
        """Return an object; None if it does not exist."""
        try:
            return self._request("GET", self.path(api_version, kind, name), what=f"read {kind} {name}")
        except ObjectNotFound:
            return None

    def list(self, api_version: str, kind: str, selector: str | None = None) -> list[Manifest]:
        """Return the objects of a kind that match a label selector, by default those of the run."""
        answer = self._request(
            "GET",
            self.path(api_version, kind),
            what=f"list {kind}",
            query={"labelSelector": self.ours if selector is None else selector},
        )
        return list(answer.get("items") or ())

    def list_if_known(
        self, api_version: str, kind: str, *, selector: str | None = None
    ) -> Sequence[Manifest]:
        """Return what `list` returns; nothing if the cluster does not know the kind."""
        try:
            return self.list(api_version, kind, selector)
        except ObjectNotFound:
            return []

    def apply(self, manifest: Manifest, *, force_conflicts: bool = False, dry_run: bool = False) -> Manifest:
        """Create or change an object by server-side apply, and return it; `dry_run` only returns the outcome.

        Raises:
            ImmutableObject: if the change is possible only in a new object.
            ClusterRefused: for example if another manager owns fields; names the manager and the fields.
        """
        kind = manifest["kind"]
        name = manifest["metadata"]["name"]
        return self._request(
            "PATCH",
            self.path(manifest["apiVersion"], kind, name),
            what=f"apply {kind} {name}",
            query={
                "fieldManager": FIELD_MANAGER,
                "force": str(force_conflicts).lower(),
                **({"dryRun": "All"} if dry_run else {}),
            },
            body=manifest,
            content_type=_APPLY_PATCH,
        )

    def create(self, manifest: Manifest) -> None:
        """Create an object.

        Raises:
            ObjectExists: there is one with its name.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        self._request(
            "POST",
            self.path(manifest["apiVersion"], kind),
            what=f"create {kind} {name}",
            query={"fieldManager": FIELD_MANAGER},
            body=manifest,
        )

    def scale(self, api_version: str, kind: str, name: str, replicas: int) -> None:
        """Set the number of pods of a Deployment, or of groups of a LeaderWorkerSet."""
        self._request(
            "PATCH",
            f"{self.path(api_version, kind, name)}/scale",
            what=f"scale {kind} {name}",
            query={"fieldManager": FIELD_MANAGER},
            body={"spec": {"replicas": replicas}},
            content_type=_MERGE_PATCH,
        )

    def delete(self, api_version: str, kind: str, name: str) -> None:
        """Delete an object and then its dependents; do nothing if it does not exist."""
        try:
            self._request(
                "DELETE",
                self.path(api_version, kind, name),
                what=f"delete {kind} {name}",
                query={"propagationPolicy": "Background"},
            )
        except ObjectNotFound:
            return

    def read(self, path: str, what: str) -> Manifest:
        """Return what the API answers to a GET of a path outside the namespace, such as `/version`."""
        return self._request("GET", path, what=what)

    def log(self, pod: str, *, lines: int, previous: bool, container: str = "") -> str:
        """Return the last lines of a pod's log.

        Args:
            pod: name of the pod.
            lines: at most this many.
            previous: of the container before its last restart.
            container: name of the container; required if the pod has several.
        """
        query = {"tailLines": str(lines), "previous": str(previous).lower()}
        query |= {"container": container} if container else {}
        path = f"{self.path('v1', 'Pod', pod)}/log"
        return self._send("GET", path, what=f"read the log of {pod}", query=query).decode(errors="replace")

    def log_lines(self, pod: str, query: Mapping[str, str]) -> Iterator[str]:
        """Yield the lines of a pod's log, new ones as they are written, until the container ends.

        Args:
            pod: name of the pod.
            query: the API's options of a log.

        Raises:
            ClusterRefused: as for other requests, before the first line.
            Unavailable: the connection was cut, or there was no line within `QUIET_SECONDS`.
        """
        from kubernetes.client.exceptions import ApiException

        what = f"follow the log of {pod}"
        path = f"{self.path('v1', 'Pod', pod)}/log"
        settings = self.client.configuration
        try:
            answer = self.client.client.rest_client.pool_manager.request(
                "GET",
                f"{settings.host}{path}?{urlencode({'follow': 'true', **query})}",
                headers={one["key"]: one["value"] for one in settings.auth_settings().values()},
                preload_content=False,
                timeout=urllib3.Timeout(connect=self.timeout_seconds, read=QUIET_SECONDS),
                retries=False,
            )
            try:
                if answer.status != 200:
                    error = ApiException(status=answer.status, reason=answer.reason)
                    error.body = answer.data.decode(errors="replace")
                    raise refusal(error, what, host=self.host, namespace=self.namespace)
                yield from _lines(answer)
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise no_answer(error, what, host=self.host, seconds=QUIET_SECONDS) from None

    def may(self, verb: str, group: str, resource: str, name: str = "") -> bool:
        """Return whether the account has a right in the namespace; asks the API (SelfSubjectAccessReview).

        Args:
            verb: such as `patch`.
            group: API group; empty for the core.
            resource: plural, with a subresource if it is meant: `deployments/scale`.
            name: name of the object; empty for any.
        """
        resource, _, subresource = resource.partition("/")
        attributes = {
            "namespace": self.namespace,
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": subresource,
            "name": name,
        }
        answer = self._request(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            what="ask for the rights of the account",
            body={
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
            },
        )
        return bool((answer.get("status") or {}).get("allowed"))

    def check_namespace(self, *, create: bool) -> None:
        """Check that the namespace exists.

        Args:
            create: create it if it does not exist.

        Raises:
            ClusterRefused: if it does not exist and `create` is false.
        """
        path = f"/api/v1/namespaces/{self.namespace}"
        try:
            self._request("GET", path, what=f"read namespace {self.namespace}")
        except ClusterForbidden:
            return  # An account limited to the namespace may not read it; later requests show if it exists.
        except ObjectNotFound:
            if not create:
                raise ClusterRefused(
                    f"the cluster has no namespace {self.namespace}: create it with --create-namespace, or "
                    "choose another with --namespace"
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
        """Return the URL path of a kind, or of one object of it.

        Raises:
            ObjectNotFound: if the cluster does not know the kind.
        """
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        if (api_version, kind) not in self._plurals:
            try:
                known = self._request("GET", root, what=f"discover {api_version}").get("resources", ())
            except ObjectNotFound:
                known = ()
            self._plurals |= {
                (api_version, one["kind"]): one["name"] for one in known if "/" not in one["name"]
            }
        plural = self._plurals.get((api_version, kind))
        if plural is None:
            raise ObjectNotFound(
                f"the cluster at {self.host} does not know the kind {kind} ({api_version}): install the "
                "extension that defines it, or leave out the component that uses it"
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
        found = json.loads(
            self._send(method, path, what=what, query=query, body=body, content_type=content_type)
        )
        assert isinstance(found, dict)
        return found

    def _send(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> bytes:
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
        return bytes(answer.data)


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[str]:
    """Yield the complete lines of a body as they arrive; the rest of one that is cut is not a line."""
    rest = b""
    while part := answer.read1():
        *complete, rest = (rest + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in complete)


def refusal(error: Any, what: str, *, host: str, namespace: str) -> FairleadError:  # noqa: ANN401
    """Return the error of `fairlead.errors` for a refused request.

    Args:
        error: the client's ApiException; its status is 0 if the TLS handshake failed.
        what: the request, as a verb and an object.
        host: address of the API.
        namespace: namespace of the request.
    """
    status = int(error.status or 0)
    details = _status_object(error.body)
    message = str(details.get("message") or error.reason or "").strip()
    where = f"{what} in namespace {namespace}"
    # 403 is the answer of a webhook, such as that of JobSets.
    if status in (403, 422) and "immutable" in message:
        return ImmutableObject(f"{where}: {message}")
    if status == 429 or status >= 500:
        return Unavailable(f"the cluster at {host} is unavailable ({where}: {status} {message})")
    if conflicts := _conflicts(details):
        return ClusterRefused(
            f"{where}: {'; '.join(conflicts)}. Take over these fields with --force-conflicts"
        )
    if status == 409 and details.get("reason") == "AlreadyExists":
        return ObjectExists(f"{where}: {message}")
    if status == 403 and "exceeded quota" in message:
        return ClusterRefused(f"{where}: {message}. Ask for a higher quota, or request less in your overlay")
    kind = {403: ClusterForbidden, 404: ObjectNotFound}.get(status, ClusterRefused)
    sentences = {
        0: f"the kubeconfig does not trust the certificate of the cluster at {host} "
        f"({message.rpartition('] ')[2].splitlines()[-1] if message else 'TLS'})",
        401: f"the cluster at {host} rejected the credentials (401): log in again, or use another --context",
        403: f"no permission to {where}: {message}. Ask for a role that has it, such as "
        "k8s/components/operator-role",
        404: f"{where}: {message}",
    }
    return kind(sentences.get(status, f"{where}: the cluster refused the request with {status}: {message}"))


def no_answer(error: Exception, what: str, *, host: str, seconds: float) -> FairleadError:
    """Return the error of `fairlead.errors` for a connection that failed or timed out after `seconds`."""
    # urllib3 counts a refused connection as a timeout.
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)
    if isinstance(error, urllib3.exceptions.TimeoutError) and not refused:
        return DeadlineExceeded(f"the cluster at {host} did not answer within {seconds:g} s ({what})")
    reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2] or type(error).__name__
    return Unavailable(
        f"the cluster at {host} cannot be reached ({what}: {reason}): check that it runs and that the "
        "context of the kubeconfig is right"
    )


def _status_object(body: bytes | str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _conflicts(status: Mapping[str, Any]) -> Sequence[str]:
    """Return `conflict with "keda" using apps/v1: .spec.replicas` for each field with another owner."""
    causes = (status.get("details") or {}).get("causes") or ()
    return [
        f"{cause.get('message', 'conflict')}: {cause.get('field', '?')}"
        for cause in causes
        if cause.get("reason") == "FieldManagerConflict"
    ]
