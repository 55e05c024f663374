"""The HTTP endpoint of a process: unknown paths, HEAD, and readiness as a metric."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from fairlead.config.infrastructure import ObserveSection
from fairlead.metrics import page


@pytest.fixture
def served() -> Iterator[tuple[int, dict[str, bool], CollectorRegistry]]:
    state = {"ready": False}
    registry = CollectorRegistry()
    port, stop = page.serve(ObserveSection(), ready=lambda: state["ready"], registry=registry)
    yield port, state, registry
    stop()


def ask(port: int, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_unknown_paths_are_not_found_and_head_has_no_body(served: tuple[int, dict[str, bool], object]):
    port, state, _ = served
    for path in ("/nosuch", "/health", "/readyz/", "/metrics/x"):
        assert ask(port, "GET", path)[0] == 404
    assert b"fairlead_process_ready 0.0" in ask(port, "GET", "/metrics")[1]
    assert ask(port, "HEAD", "/metrics") == (200, b"")
    assert ask(port, "HEAD", "/healthz") == (200, b"")
    assert ask(port, "HEAD", "/readyz") == (503, b"")
    state["ready"] = True
    assert ask(port, "HEAD", "/readyz") == (200, b"")
    assert b"fairlead_process_ready 1.0" in ask(port, "GET", "/metrics")[1]
