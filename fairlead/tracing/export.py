"""Records spans, and sends them with OpenTelemetry's SDK in a thread of its own. Needs the extra `otel`.

Nothing here waits for the backend: what it does not take in time is dropped and counted. No error of it
reaches the run.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from fairlead.tracing.context import SpanContext
from fairlead.tracing.spans import Span, Start, Value

logger = logging.getLogger(__name__)

MAX_WAITING = 4_096
"""Spans that wait to be sent; further ones are dropped."""
_BATCH = 512
_EVERY_SECONDS = 15.0
"""Time between two requests to the backend, unless a batch is full: one costs as much CPU as fifty spans."""
_TIMEOUT_SECONDS = 5.0
"""Of one request to the backend, its retries included."""
_CLOSE_SECONDS = 2.0
"""Longest delay of the end of a process."""
_KINDS = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
}


class Export:
    """The recorder of a process: its spans, and the thread that sends them."""

    def __init__(
        self,
        endpoint: str,
        *,
        run: str,
        process: str,
        one_in: int,
        on_spans: Callable[[str, int], None],
    ) -> None:
        """
        Args:
            endpoint: where spans are sent; "" for what the environment names.
            run: name of the run.
            process: name of this process's service.
            one_in: one task of this many is sampled.
            on_spans: counts spans; see `setup.start`.
        """
        self.run = run
        self.one_in = one_in
        # The SDK logs each failure with a traceback; `_Sender` logs the first one.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(endpoint=endpoint or None, timeout=_TIMEOUT_SECONDS)
        self.endpoint = endpoint or "the backend that the environment names"
        version = _version()
        resource = Resource.create(
            {
                "service.name": f"fairlead-{process.replace('_', '-')}",
                "service.namespace": "fairlead",
                "service.version": version,
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
                "fairlead.run": run,
            }
        )
        scope = InstrumentationScope("fairlead", version)
        self._sender = _Sender(
            exporter, where=self.endpoint, on_spans=on_spans, to_sdk=partial(_to_sdk, resource, scope)
        )

    def start(self, name: str, start: Start) -> Span:
        """Begin a span; see `spans.Recorder`."""
        return _Recorded(name, start, self._sender.add)

    def flush(self) -> None:
        """Send what waits now."""
        self._sender.flush()

    def close(self) -> None:
        """Send what is left, for at most two seconds."""
        self._sender.close()


class _Recorded(Span):
    """A span that is recorded. It becomes one of the SDK in the thread that sends it."""

    __slots__ = ("_on_end", "attributes", "end_ns", "error", "links", "name", "start", "start_ns")

    def __init__(self, name: str, start: Start, on_end: Callable[[_Recorded], None]) -> None:
        # Not of `random`, which programs seed.
        parent = start.parent
        super().__init__(
            start.context
            or SpanContext(
                int.from_bytes(os.urandom(16)) if parent is None else parent.trace_id,
                int.from_bytes(os.urandom(8)),
                is_sampled=True,
            )
        )
        self.name = name
        self.start = start
        self.start_ns = start.start_ns or time.time_ns()
        self.end_ns = 0
        self.attributes = dict(start.attributes)
        self.links = list(start.links)
        self.error = ""
        self._on_end = on_end

    def set(self, **attributes: Value) -> None:
        self.attributes |= attributes

    def link(self, context: SpanContext) -> None:
        self.links.append(context)

    def fail(self, reason: str) -> None:
        self.error = reason

    def end(self, *, end_ns: int | None = None) -> None:
        self.end_ns = end_ns or time.time_ns()
        self._on_end(self)


class _Sender:
    """A bounded queue of ended spans, and the thread that sends them."""

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        where: str,
        on_spans: Callable[[str, int], None],
        to_sdk: Callable[[_Recorded], ReadableSpan],
    ) -> None:
        self._exporter = exporter
        self._to_sdk = to_sdk
        self._where = where
        self._on_spans = on_spans
        self._waiting: deque[_Recorded] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._is_down = False
        self._thread = threading.Thread(target=self._send, name="traces", daemon=True)
        self._thread.start()

    def add(self, span: _Recorded) -> None:
        """Queue a span; never waits."""
        with self._changed:
            is_full = len(self._waiting) >= MAX_WAITING or self._closing
            if not is_full:
                self._waiting.append(span)
                if len(self._waiting) == _BATCH:
                    self._changed.notify()
        if is_full:
            self._on_spans("dropped", 1)

    def flush(self) -> None:
        """Wake the thread."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Send what waits, for a limited time, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)
        self._exporter.shutdown()
        with self._changed:
            left = len(self._waiting)
            self._waiting.clear()
        if left:
            self._on_spans("dropped", left)

    def _send(self) -> None:
        while True:
            with self._changed:
                if not self._closing and len(self._waiting) < _BATCH:
                    self._changed.wait(_EVERY_SECONDS)
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                closing = self._closing
            if batch:
                self._export(batch)
            elif closing:
                return

    def _export(self, batch: list[_Recorded]) -> None:
        begun = time.monotonic()
        try:
            sent = self._exporter.export(list(map(self._to_sdk, batch))) is SpanExportResult.SUCCESS
            reason = f"no success within {time.monotonic() - begun:.1f} s"
        except Exception as error:  # noqa: BLE001 - the backend never stops the run
            sent, reason = False, f"{type(error).__name__}: {error}"
        self._on_spans("sent" if sent else "failed", len(batch))
        if not sent and not self._is_down:
            logger.warning("traces cannot be sent to %s: %s; the run continues", self._where, reason)
        elif sent and self._is_down:
            logger.info("traces are sent to %s again", self._where)
        self._is_down = not sent


def _version() -> str:
    try:
        return importlib.metadata.version("fairlead-rlhf")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _to_sdk(resource: Resource, scope: InstrumentationScope, span: _Recorded) -> ReadableSpan:
    assert span.context is not None
    parent = span.start.parent
    return ReadableSpan(
        name=span.name,
        context=_context(span.context),
        parent=None if parent is None else _context(parent),
        resource=resource,
        attributes=span.attributes,
        links=[trace.Link(_context(each)) for each in span.links],
        kind=_KINDS[span.start.kind],
        status=trace.Status(trace.StatusCode.ERROR, span.error) if span.error else trace.Status(),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=scope,
    )


def _context(context: SpanContext) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.is_sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=flags)
