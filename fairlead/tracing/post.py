"""Posts encoded spans to a backend, as the environment variables of OpenTelemetry's exporters say.

The exporter of the SDK does the same, but takes only spans of the SDK, and to make and encode those costs
three times as much CPU time. Knows nothing about spans. Needs the extra `otel`.
"""

from __future__ import annotations

import gzip
import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping

import requests
from opentelemetry.util.re import parse_env_headers

from fairlead.tracing.setup import PATH

_TRANSIENT = (429, 502, 503, 504)
"""Statuses after which OTLP asks to send again."""
_FIRST_PAUSE_SECONDS = 0.5
_COMPRESSION: Mapping[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class Post:
    """Posts to one backend over one connection. Used by one thread."""

    def __init__(self, endpoint: str, *, timeout_seconds: float) -> None:
        """
        Args:
            endpoint: address with the path; "" for that of the environment.
            timeout_seconds: of one call, with its repetitions.
        """
        self._timeout_seconds = timeout_seconds
        self._closed = threading.Event()
        self._session = requests.Session()
        self._compression = _setting("COMPRESSION").strip().lower()
        headers = {"content-type": "application/x-protobuf"}
        if self._compression in _COMPRESSION:
            headers["content-encoding"] = self._compression
        headers |= parse_env_headers(_setting("HEADERS"), liberal=True)
        url = endpoint or _environment_endpoint()
        self._request = self._session.prepare_request(requests.Request("POST", url, headers=headers))
        verify = _setting("CERTIFICATE") or True
        key, certificate = _setting("CLIENT_KEY"), _setting("CLIENT_CERTIFICATE")
        client = (certificate, key) if certificate and key else certificate or None
        # Once: proxies and so on are looked up in the environment.
        self._settings = self._session.merge_environment_settings(url, {}, None, verify, client)

    def __call__(self, body: bytes) -> str:
        """Send a message; return why the backend has not taken it, empty if it has."""
        request = self._request.copy()
        compress = _COMPRESSION.get(self._compression)
        request.prepare_body(compress(body) if compress else body, None)
        deadline = time.monotonic() + self._timeout_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                left = max(0.1, deadline - time.monotonic())
                answer = self._session.send(request, timeout=left, allow_redirects=False, **self._settings)
            except requests.exceptions.RequestException as error:
                reason, is_transient = f"{type(error).__name__}: {error}", True
            else:
                if 200 <= answer.status_code < 300:
                    return ""
                reason, is_transient = f"status {answer.status_code}", answer.status_code in _TRANSIENT
            if not is_transient or time.monotonic() + pause > deadline or self._closed.wait(pause):
                return reason
            pause *= 2

    def close(self) -> None:
        """End a call that repeats, and the connection."""
        self._closed.set()
        self._session.close()


def _setting(name: str) -> str:
    """Return a setting of the exporter of traces, or else of all exporters; empty for none."""
    names = (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}")
    return next((found for each in names if (found := os.environ.get(each))), "")


def _environment_endpoint() -> str:
    if own := os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return own
    return os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"].rstrip("/") + PATH
