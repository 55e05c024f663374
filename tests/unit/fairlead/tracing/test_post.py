"""Posting of spans: settings of the environment, and what is sent again."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")

from fairlead.tracing import post

BODY = b"spans" * 100


@contextmanager
def backend(*statuses: int) -> Iterator[tuple[str, Sequence[tuple[str, dict[str, str], bytes]]]]:
    """Answer each request with the next status, and the last one from then on; give address and requests."""
    found: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.append((self.path, {name.lower(): text for name, text in self.headers.items()}, body))
            self.send_response(statuses[min(len(found), len(statuses)) - 1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def posting(endpoint: str, seconds: float = 20.0) -> Iterator[post.Post]:
    made = post.Post(endpoint, timeout_seconds=seconds)
    try:
        yield made
    finally:
        made.close()


def test_settings_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch):
    with backend(200) as (address, requests):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{address}/base/")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x,tenant=all")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip")
        with posting("") as send:
            assert send(BODY) == ""
            assert send(BODY) == ""
    (path, headers, body), (_, _, second) = requests
    assert path == "/base/v1/traces"
    assert headers["content-type"] == "application/x-protobuf"
    assert (headers["authorization"], headers["tenant"]) == ("Bearer x", "all")
    assert gzip.decompress(body) == gzip.decompress(second) == BODY
    assert int(headers["content-length"]) == len(body)


def test_only_what_may_pass_is_sent_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(post, "_FIRST_PAUSE_SECONDS", 0.01)
    with backend(503, 429, 200) as (address, requests), posting(f"{address}/v1/traces") as send:
        assert send(BODY) == ""
        assert [body for _, _, body in requests] == [BODY] * 3
    for status in (302, 400, 500):
        with backend(status) as (address, requests), posting(f"{address}/v1/traces") as send:
            assert send(BODY) == f"status {status}"
            assert len(requests) == 1
    with posting(f"{address}/v1/traces", seconds=0.1) as send:
        assert "Connection" in send(BODY)  # nobody listens


def test_end_of_the_process_ends_the_repetitions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(post, "_FIRST_PAUSE_SECONDS", 10.0)
    with backend(503) as (address, requests), posting(f"{address}/v1/traces", seconds=60.0) as send:
        reasons: list[str] = []
        thread = threading.Thread(target=lambda: reasons.append(send(BODY)))
        thread.start()
        while not requests:
            thread.join(0.01)
        send.close()
        thread.join(5.0)
        assert not thread.is_alive()
        assert reasons == ["status 503"]
