"""A stand-in for a cluster's API: HTTPS, tokens, discovery, server-side apply with owners, deletes, faults.

It implements the API of Kubernetes (paths, Status objects, strict schemas, immutable Jobs), and
`cluster_controllers` creates the pods of applied objects. A test with it proves nothing about a real cluster.
"""

from __future__ import annotations

import copy
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme
import yaml

from fairlead.k8s.labels import NAME, selector
from tests.cluster_controllers import READY, Controllers, Key
from tests.cluster_objects import leaves, merged, selects
from tests.kubernetes_schemas import mistake

TOKEN = "a-token-of-the-test"
# The parser in C: an apply is one for each object of a run.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CREATED = "2026-01-01T00:00:00Z"
BUILT_IN = {
    "v1": {
        "ConfigMap": "configmaps",
        "Event": "events",
        "LimitRange": "limitranges",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "Pod": "pods",
        "ResourceQuota": "resourcequotas",
        "Secret": "secrets",
        "Service": "services",
        "ServiceAccount": "serviceaccounts",
    },
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "batch/v1": {"CronJob": "cronjobs", "Job": "jobs"},
    "networking.k8s.io/v1": {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
}
KEDA = {
    "keda.sh/v1alpha1": {"ScaledObject": "scaledobjects", "TriggerAuthentication": "triggerauthentications"}
}
JOB_SETS = {"jobset.x-k8s.io/v1alpha2": {"JobSet": "jobsets"}}
LEADER_WORKER_SETS = {"leaderworkerset.x-k8s.io/v1": {"LeaderWorkerSet": "leaderworkersets"}}


class Refusal(Exception):
    """An error response of the API."""

    def __init__(
        self, code: int, reason: str, message: str, causes: list[dict[str, str]] | None = None
    ) -> None:
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": reason,
            "message": message,
            "details": {"causes": causes or []},
            "code": code,
        }


@dataclass
class StandIn:
    """The state of the cluster, and the faults to inject."""

    namespaces: set[str] = field(default_factory=lambda: {"fairlead"})
    kinds: dict[str, dict[str, str]] = field(default_factory=lambda: copy.deepcopy(BUILT_IN))
    objects: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """By plural, namespace and name."""
    owners: dict[Key, dict[str, str]] = field(default_factory=dict)
    """The owner of each leaf of each object."""
    controllers: Controllers = field(init=False)
    """Creates the pods."""
    faults: list[tuple[str, int | str]] = field(default_factory=list)
    """Patterns of `METHOD path`, each with a status or `hang`; each is injected once."""
    requests: list[str] = field(default_factory=list)
    """`METHOD path` of every request, in order; `DRY-RUN path` if nothing is to be persisted."""
    rules: list[dict[str, Any]] | None = None
    """The rights of the account, as in a Role; None allows everything."""
    quota: dict[str, str] = field(default_factory=dict)
    """Name of the ResourceQuota whose capacity is used up, by plural."""
    outside: dict[str, Any] = field(default_factory=lambda: {"/version": {"gitVersion": "v1.36.2"}})
    """Answers to a GET of paths outside a namespace."""
    logs: dict[str, str] = field(default_factory=dict)
    """Log by pod, of requests that do not follow it."""
    written: dict[str, list[str]] = field(default_factory=dict)
    """Lines by pod with their times, of requests that follow them."""
    previous: dict[str, list[str]] = field(default_factory=dict)
    """The same of the container before its last restart."""
    cuts: list[str] = field(default_factory=list)
    """Pods whose log is cut within a line, each once."""
    ended: set[str] = field(default_factory=set)
    """Pods whose container has ended, and whose log with it."""
    asked: set[tuple[str, str, str]] = field(default_factory=set)
    """Verb, API group and resource of every request to an object of the namespace."""
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.controllers = Controllers(self.objects)

    def answer(self, method: str, url: str, headers: Any, body: bytes) -> Any:
        """Return the response of the API, or raise Refusal."""
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        dry_run = query.get("dryRun") == "All"
        line = f"{'DRY-RUN' if dry_run else method} {parts.path}"
        with self.lock:
            self.requests.append(line)
            fault = next((one for one in self.faults if re.fullmatch(one[0], line)), None)
            if fault is not None:
                self.faults.remove(fault)
        if fault is not None and fault[1] == "hang":
            self.closing.wait(60)
        elif fault is not None:
            raise Refusal(int(fault[1]), "Fault", f"as the test wants it: {fault[1]}")
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        with self.lock:
            return self._route(method, parts.path, query, headers.get("Content-Type", ""), body)

    def _route(self, method: str, path: str, query: dict[str, str], content_type: str, body: bytes) -> Any:
        if found := re.fullmatch(r"/api/v1/namespaces/([^/]+)", path):
            self._authorize({"GET": "get"}.get(method, "create"), "v1", "namespaces", found[1])
            return self._namespace(method, found[1])
        if path.endswith("/selfsubjectaccessreviews"):
            return self._review(json.loads(body)["spec"]["resourceAttributes"])
        if path in self.outside:
            return self.outside[path]
        if found := re.fullmatch(r"/apis?/((?:[^/]+/)?v\w+)", path):
            return self._discover(found[1])
        if found := re.fullmatch(r"/api/v1/namespaces/[^/]+/pods/([^/]+)/log", path):
            return self._log(found[1], query)
        return self._route_to_object(method, path, query, content_type, body)

    def _route_to_object(
        self, method: str, path: str, query: dict[str, str], content_type: str, body: bytes
    ) -> Any:
        found = re.fullmatch(r"/apis?/((?:[^/]+/)?v\w+)/namespaces/([^/]+)/(\w+)(?:/([^/]+))?(/scale)?", path)
        version, namespace, plural, name, scale = found.groups() if found else (None, "", "", "", "")
        if plural not in self.kinds.get(version, {}).values():
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        verb = {"GET": "get" if name else "list", "POST": "create"}.get(method, method.lower())
        self._authorize(verb, version or "", plural + (scale or ""), name or "")
        if verb == "patch" and (plural, namespace, name) not in self.objects:
            self._authorize("create", version or "", plural, "")
        # A list of a namespace that does not exist is empty.
        if namespace not in self.namespaces and verb != "list":
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
        if method == "POST":
            return self._create(plural, namespace, version or "", query, json.loads(body))
        if name is None:
            return self._list(plural, namespace, query.get("labelSelector", ""))
        return self._object(
            method, (plural, namespace, name), version, bool(scale), query, content_type, body
        )

    def _object(
        self,
        method: str,
        key: Key,
        version: str,
        scale: bool,
        query: dict[str, str],
        content_type: str,
        body: bytes,
    ) -> Any:
        if method == "PATCH" and not scale:
            if content_type != "application/apply-patch+yaml":
                raise Refusal(415, "UnsupportedMediaType", content_type)
            return self._apply(key, version, query, yaml.load(body, Loader=_LOADER))
        if key not in self.objects:
            raise Refusal(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        if scale:
            assert content_type == "application/merge-patch+json"
            self.objects[key]["spec"]["replicas"] = json.loads(body)["spec"]["replicas"]
            self.owners[key][".spec.replicas"] = "fairlead by scale"
            self.controllers.applied(key)
        if method == "DELETE":
            return self._delete(key)
        return self.objects[key]

    def _review(self, wanted: dict[str, str]) -> Any:
        """Answer a SelfSubjectAccessReview."""
        resource = "/".join(part for part in (wanted["resource"], wanted.get("subresource")) if part)
        allowed = self._may(wanted["verb"], wanted.get("group", ""), resource, wanted.get("name", ""))
        return {"kind": "SelfSubjectAccessReview", "status": {"allowed": allowed}}

    def _log(self, pod: str, query: dict[str, str]) -> str | Iterator[str]:
        self._authorize("get", "v1", "pods/log", pod)
        if "follow" in query:
            if query.get("previous") == "true":
                return self._previous(pod, query)
            return self._follow(pod, query, self.written.setdefault(pod, []))
        if query.get("previous") == "true":
            raise Refusal(400, "BadRequest", "previous terminated container not found")
        lines = self.logs.get(pod, "").splitlines()[-int(query["tailLines"]) :]
        return "\n".join(lines) + "\n"

    def _previous(self, pod: str, query: dict[str, str]) -> Iterator[str]:
        if pod not in self.previous:
            raise Refusal(400, "BadRequest", "previous terminated container not found")
        return iter([f"{line}\n" for line in self.previous[pod] if line[:19] >= query["sinceTime"][:19]])

    def _follow(self, pod: str, query: dict[str, str], log: list[str]) -> Iterator[str]:
        """Yield the lines of a container's log until it ends; `log` is replaced when it restarts."""
        assert query["timestamps"] == "true"
        position = 0 if "sinceTime" in query else max(0, len(log) - int(query["tailLines"]))
        while not self.closing.is_set():
            is_over = pod in self.ended or self.written[pod] is not log
            new, position = log[position:], len(log)
            # sinceTime has the resolution of a second.
            yield "".join(f"{line}\n" for line in new if line[:19] >= query.get("sinceTime", "")[:19])
            if pod in self.cuts:
                self.cuts.remove(pod)
                yield "2026-01-01T00:00:59.000000000Z half a li"
                raise ConnectionAbortedError
            if is_over:
                return
            self.closing.wait(0.05)

    def _may(self, verb: str, group: str, resource: str, name: str) -> bool:
        return self.rules is None or any(
            verb in rule["verbs"]
            and group in rule["apiGroups"]
            and resource in rule["resources"]
            and name in rule.get("resourceNames", [name])
            for rule in self.rules
        )

    def _authorize(self, verb: str, version: str, resource: str, name: str) -> None:
        """Refuse a request as RBAC does."""
        group = version.rpartition("/")[0]
        self.asked.add((verb, group, resource))
        if not self._may(verb, group, resource, name):
            message = (
                f'{resource} "{name}" is forbidden: User "tester" cannot {verb} resource "{resource}" '
                f'in API group "{group}" in the namespace "fairlead"'
            )
            raise Refusal(403, "Forbidden", message)

    def _namespace(self, method: str, name: str) -> Any:
        if method == "PATCH":
            self.namespaces.add(name)
        if name not in self.namespaces:
            raise Refusal(404, "NotFound", f'namespaces "{name}" not found')
        return {"kind": "Namespace", "metadata": {"name": name}}

    def _discover(self, version: str) -> Any:
        if version not in self.kinds:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        resources = [{"kind": kind, "name": name} for kind, name in self.kinds[version].items()]
        resources += [{"kind": "Scale", "name": "deployments/scale"}]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}

    def _list(self, plural: str, namespace: str, selector: str) -> Any:
        if plural == "pods":
            self.controllers.tick()
        items = [
            one
            for (kind, where, _), one in sorted(self.objects.items())
            if (kind, where) == (plural, namespace) and selects(selector, one["metadata"].get("labels", {}))
        ]
        return {"kind": "List", "items": json.loads(json.dumps(items))}

    def _apply(self, key: Key, version: str, query: dict[str, str], wanted: dict[str, Any]) -> Any:
        manager = query.get("fieldManager")
        if not manager:
            raise Refusal(400, "BadRequest", "fieldManager is required for apply patch")
        if version in BUILT_IN and (reason := mistake(wanted)):
            raise Refusal(400, "BadRequest", f"strict decoding error: {reason}")
        old = self.objects.get(key)
        if not old and key[0] in self.quota:
            message = (
                f'{key[0]} "{key[2]}" is forbidden: exceeded quota: {self.quota[key[0]]}, '
                f"requested: {key[0]}=1, used: {key[0]}=1, limited: {key[0]}=1"
            )
            raise Refusal(403, "Forbidden", message)
        if old and key[0] == "jobsets" and old["spec"]["replicatedJobs"] != wanted["spec"]["replicatedJobs"]:
            raise Refusal(
                403,
                "Forbidden",
                'admission webhook "vjobset.kb.io" denied the request: replicatedJobs: field is immutable',
            )
        if old and key[0] == "jobs" and old["spec"]["template"] != wanted["spec"]["template"]:
            raise Refusal(
                422,
                "Invalid",
                f'Job.batch "{key[2]}" is invalid: spec.template: Invalid value: field is immutable',
            )
        owners = self.owners.get(key, {})
        fields = dict(leaves(wanted))
        before = dict(leaves(old)) if old else {}
        conflicts = [
            path
            for path, value in fields.items()
            if owners.get(path, manager) != manager and before.get(path) != value
        ]
        if conflicts and query.get("force") != "true":
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{owners[path]}" using {version}',
                    "field": path,
                }
                for path in conflicts
            ]
            raise Refusal(409, "Conflict", f"Apply failed with {len(causes)} conflict", causes)
        new = merged(old or {}, wanted)
        if key[0] == "persistentvolumeclaims":
            new.setdefault("status", {"phase": "Bound"})
        applied = {"manager": manager, "operation": "Apply"}
        if applied not in (managers := new["metadata"].setdefault("managedFields", [])):
            managers.append(applied)
        new["metadata"].setdefault("creationTimestamp", _CREATED)
        new["metadata"]["generation"] = new["metadata"].get("generation", 0) + (new != old)
        if query.get("dryRun") == "All":
            return new
        self.owners[key] = owners | dict.fromkeys(fields, manager)
        self.objects[key] = new
        self.controllers.applied(key)
        return new

    def _create(
        self, plural: str, namespace: str, version: str, query: dict[str, str], wanted: dict[str, Any]
    ) -> Any:
        key = (plural, namespace, wanted["metadata"]["name"])
        if key in self.objects:
            raise Refusal(409, "AlreadyExists", f'{plural} "{key[2]}" already exists')
        return self._apply(key, version, query, wanted)

    def _delete(self, key: Key) -> Any:
        del self.objects[key]
        self.owners.pop(key, None)
        self.controllers.deleted(key)
        return {"kind": "Status", "status": "Success"}


def named(cluster: StandIn, plural: str, namespace: str = "fairlead") -> dict[str, dict[str, Any]]:
    """Return the objects of a kind by name."""
    return {key[2]: found for key, found in cluster.objects.items() if key[:2] == (plural, namespace)}


def writes(cluster: StandIn) -> list[str]:
    """Return the requests since the last call that change something."""
    found = [line for line in cluster.requests if not line.startswith(("GET", "DRY-RUN", "POST"))]
    cluster.requests.clear()
    return found


def add_process(cluster: StandIn, plural: str, name: str, pods: int = 1) -> list[str]:
    """Create an object of the run `one` with ready pods and only what is read of it; return its pods."""
    labels = dict(part.split("=") for part in selector("one").split(",")) | {NAME: name}
    containers = [{"name": "exporter", "image": "x"}, {"name": name, "image": "y"}]
    template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    key = (plural, "fairlead", f"one-{name}")
    cluster.objects[key] = {
        "kind": {"deployments": "Deployment", "jobs": "Job", "statefulsets": "StatefulSet"}[plural],
        "metadata": {"name": f"one-{name}", "labels": labels, "generation": 1},
        "spec": {"template": template, "replicas": pods, "parallelism": pods},
    }
    cluster.controllers.scripts.setdefault(f"one-{name}", [READY])
    cluster.controllers.applied(key)
    return [pod for pod in named(cluster, "pods") if pod.startswith(f"one-{name}")]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[StandIn, Path]]:
    """Run a server for the duration of the block; yield its state and a kubeconfig that reaches it."""
    state = StandIn()
    authority = trustme.CA()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, answer = 200, None
            try:
                answer = state.answer(self.command, self.path, self.headers, body)
            except Refusal as refusal:
                code, answer = refusal.code, refusal.status
            if isinstance(answer, Iterator):
                _stream(self, answer)
                return
            is_text = isinstance(answer, str)
            text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PATCH = do_DELETE = do_POST = _do

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, ssl.SSLError):
                return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(configuration(server.server_port, folder / "ca.pem", TOKEN)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state, kubeconfig
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _stream(handler: BaseHTTPRequestHandler, parts: Iterator[str]) -> None:
    """Write a body as its parts come."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for part in parts:
        if part:
            handler.wfile.write(f"{len(part.encode()):x}\r\n{part}\r\n".encode())
        handler.wfile.flush()
    handler.wfile.write(b"0\r\n\r\n")


def configuration(port: int, authority: Path, token: str) -> dict[str, Any]:
    """Return a kubeconfig."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority)},
            }
        ],
        "users": [{"name": "test", "user": {"token": token}}],
    }
