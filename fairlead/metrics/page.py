"""The HTTP endpoint of a process for Prometheus, probes and people: /metrics, /healthz, /readyz, /waiting.

Plain text, or TLS if configured. It adds the metrics that every process has.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from socket import socket
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from fairlead import watchdog
from fairlead.config.infrastructure import ObserveSection
from fairlead.errors import ConfigError
from fairlead.metrics.process import ClientMetrics, ProcessMetrics
from fairlead.rpc.tls import Certificates, TlsFiles

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment


_TEXT = "text/plain; charset=utf-8"


_OPEN_PATHS = ("/healthz", "/readyz")
"""Answered without a certificate, which the kubelet's probes do not have."""
_HAS_CERTIFICATE = "fairlead.has_certificate"


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0
    """Seconds after which an idle connection is closed, also during a TLS handshake."""

    def get_environ(self) -> dict[str, Any]:
        """Return the environment of the request, with whether the caller has a valid certificate."""
        found = super().get_environ()
        connection = self.connection
        found[_HAS_CERTIFICATE] = isinstance(connection, ssl.SSLSocket) and bool(connection.getpeercert())
        return found

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: probes would fill the log."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__(address, _QuietHandler)

    def get_request(self) -> tuple[socket, tuple[str, int]]:
        """Return a connection; the handler does the TLS handshake, in its thread."""
        connection, address = super().get_request()
        if self._context is not None:
            connection = self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore callers that disconnect or whose handshake fails."""


def serve(
    observe: ObserveSection,
    *,
    ready: Callable[[], bool],
    tls: TlsFiles | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> tuple[int, Callable[[], None]]:
    """Serve `/metrics`, `/healthz` (200 while the process is alive), `/readyz` (200 or 503) and `/waiting`.

    Runs in a thread. `/waiting` returns what the process waits for, as JSON.

    Args:
        observe: host and port; port 0 for any free one, -1 to serve nothing.
        ready: called at every `/readyz`.
        tls: certificates of the process, used with `observe.metrics_tls`.
        registry: the metrics; those of `ProcessMetrics` and `ClientMetrics` are added.

    Returns:
        The port, or -1 if nothing is served, and a function that stops the endpoint.

    Raises:
        ConfigError: if the port is in use, or TLS is configured without a certificate.
    """
    ProcessMetrics(registry, ready=ready)
    ClientMetrics(registry)
    if observe.metrics_port < 0:
        return -1, lambda: None
    context = None
    if observe.metrics_tls:
        if tls is None or not tls.on:
            raise ConfigError("observe.metrics_tls", got=True, allowed="true with a certificate in [tls]")
        context = Certificates(tls, serves=True, asks_clients=True).server_context()
    host, port = observe.metrics_host, observe.metrics_port
    try:
        server = _Server((host, port), context)
    except OSError as error:
        raise ConfigError(
            "observe.metrics_port", got=f"{host}:{port} ({error.strerror})", allowed="a free port"
        ) from error
    needs_certificate = context is not None and tls is not None and tls.mutual
    server.set_app(_app(ready, registry, needs_certificate=needs_certificate))
    # Interval of the check for shutdown; the default would add half a second to every drain.
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return server.server_port, stop


def _app(
    ready: Callable[[], bool], registry: CollectorRegistry, *, needs_certificate: bool
) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    metrics_app = make_wsgi_app(registry)

    def answer(status: str, kind: str, body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        return status, [("Content-Type", kind), ("Content-Length", str(len(body)))], body

    def page(path: str) -> tuple[str, list[tuple[str, str]], bytes]:
        if path in ("/healthz", "/readyz"):
            healthy = path == "/healthz" or ready()
            status = "200 OK" if healthy else "503 Service Unavailable"
            return answer(status, _TEXT, b"ok\n" if healthy else b"not ready\n")
        if path == "/waiting":
            return answer("200 OK", "application/json", watchdog.PROCESS.to_json().encode())
        # A misspelt path of a probe must not look healthy.
        return answer("404 Not Found", _TEXT, b"not found: /metrics, /healthz, /readyz, /waiting\n")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        is_head = environ.get("REQUEST_METHOD") == "HEAD"
        if needs_certificate and path not in _OPEN_PATHS and not environ[_HAS_CERTIFICATE]:
            status, headers, body = answer("403 Forbidden", _TEXT, b"a client certificate is required\n")
            start_response(status, headers)
            return [] if is_head else [body]
        if path in ("/", "/metrics"):
            # The library answers HEAD with 405.
            found = metrics_app({**environ, "REQUEST_METHOD": "GET"} if is_head else environ, start_response)
            return [] if is_head else found
        status, headers, body = page(path)
        start_response(status, headers)
        return [] if is_head else [body]

    return app
