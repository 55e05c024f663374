"""Posting of spans: settings of the environment, and what is sent again."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")

from fairlead.tracing import post
from tests.trace_backend import backend

BODY = b"spans" * 100


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
