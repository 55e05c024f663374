"""Spans of a process that traces: what arrives at a receiver, and what happens without one."""

from __future__ import annotations

import importlib.util
import json
import logging
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from fairlead import log, metrics, tracing
from fairlead.config.infrastructure import ObserveSection
from fairlead.errors import ConfigError
from fairlead.tracing import picture, setup, spans, stored


def has_extra() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


needs_extra = pytest.mark.skipif(not has_extra(), reason="needs the extra otel")


def traced(endpoint: str, counts: Counter[str], *, one_in: int = 1):
    def count(result: str, number: int) -> None:
        counts[result] += number

    observe = ObserveSection(otlp_endpoint=endpoint, trace_one_in=one_in)
    return tracing.start(observe, run="demo", process="rollout_worker", counter=lambda: count)


@needs_extra
def test_spans_of_a_task_arrive_and_joined_calls_refer_to_each_other(tmp_path: Path):
    from fairlead.tracing.sink import receiving

    counts = Counter[str]()
    file = tmp_path / "traces.jsonl"
    registry = CollectorRegistry()
    worker = metrics.WorkerMetrics(registry)
    formatter = log.JsonFormatter({"run": "demo"})
    with receiving(file, host="127.0.0.1", port=0) as address, traced(address, counts):
        callers = []
        for task in (17, 18):
            with tracing.part_of(tracing.task_context(task, (1, 1))), log.bound(task=task):
                with tracing.span("claim", attributes={"fairlead.task": task}) as claim:
                    callers.append(claim)
                    with worker.stage("generate"):
                        record = logging.makeLogRecord({"msg": "working"})
                        line = json.loads(formatter.format(record))
                    with tracing.joined("reward call", callers, attributes={"fairlead.tasks": len(callers)}):
                        header = tracing.traceparent()
    found = {(span.name, span.attributes.get("fairlead.task")): span for span in stored.read(file)}
    first, second = found["claim", 17], found["claim", 18]
    expected = tracing.SpanContext.parse(header)
    [_, call] = [span for span in stored.read(file) if span.name == "reward call"]
    assert f"{expected.span_id:016x}" == call.span_id
    assert (call.trace_id, call.parent_id) == (first.trace_id, first.span_id)
    assert list(call.links) == [(second.trace_id, second.span_id)]
    assert list(second.links) == [(call.trace_id, call.span_id)]
    assert line.items() >= {"run": "demo", "task": 18, "trace_id": second.trace_id}.items()
    assert f'trace_id="{second.trace_id}"' in generate_latest(registry).decode()
    assert counts == {"sent": 4}
    assert any("reward call" in row for row in picture.draw(stored.read(file), first.trace_id))
    assert not tracing.is_on()


@needs_extra
def test_backend_that_does_not_answer_delays_nothing(monkeypatch: pytest.MonkeyPatch):
    from fairlead.tracing import export

    monkeypatch.setattr(export, "MAX_WAITING", 50)
    monkeypatch.setattr(export, "_CLOSE_SECONDS", 0.2)
    counts = Counter[str]()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        with traced(f"http://127.0.0.1:{silent.getsockname()[1]}", counts):
            for task in range(2_000):
                start = spans.Start(context=tracing.task_context(task, (1, 1)), attributes={})
                tracing.record("dispatch", start)
            assert counts["dropped"] > 0
            begun = time.monotonic()
        assert time.monotonic() - begun < 5.0
    assert counts["sent"] == 0
    assert counts["dropped"] + counts["failed"] <= 2_000


@needs_extra
def test_what_is_not_sampled_is_not_recorded_and_says_so_to_others(tmp_path: Path):
    from fairlead.tracing.sink import receiving

    file = tmp_path / "traces.jsonl"
    counts = Counter[str]()
    with receiving(file, host="127.0.0.1", port=0) as address, traced(address, counts, one_in=10**9):
        with tracing.part_of(tracing.task_context(1, (1, 1))), tracing.span("claim") as claim:
            assert claim is spans.NO_SPAN
            assert tracing.exemplar() is None
            assert tracing.traceparent().endswith("-00")
            assert (
                tracing.serve("Score", tracing.traceparent(), start_ns=1, attributes={}).is_recorded is False
            )
    assert counts == {}


def test_tracing_without_the_extra_is_refused_unless_only_the_environment_asks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ConfigError, match=r"otlp_endpoint: got .*, allowed: .*fairlead-rlhf\[otel\]"):
        with traced("http://127.0.0.1:4318", Counter()):
            pass
    monkeypatch.setenv(setup.ENDPOINTS[1], "http://127.0.0.1:4318")
    with traced("", Counter()):
        assert not tracing.is_on()
    assert "no traces" in caplog.text
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with traced("http://127.0.0.1:4318", Counter()):
        assert not tracing.is_on()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4318", "http://", "ftp://a:1", "http://user:pw@a:4318", "http://a:99999999"]
)
def test_invalid_endpoints_are_refused(url: str):
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        ObserveSection(otlp_endpoint=url)
