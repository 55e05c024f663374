"""Records spans with OpenTelemetry's SDK and sends them in a thread of its own. Needs the extra `otel`.

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

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from fairlead.tracing.context import SpanContext
from fairlead.tracing.spans import Span, Start, Value

logger = logging.getLogger(__name__)

MAX_WAITING = 4_096
"""Spans that wait to be sent; further ones are dropped."""
_BATCH = 512
EVERY_SECONDS = 5.0
"""Time between two requests to the backend, unless a batch is full: one costs as much CPU as ten spans."""
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
        max_links: int,
        on_spans: Callable[[str, int], None],
    ) -> None:
        """
        Args:
            endpoint: where spans are sent; "" for what the environment names.
            run: name of the run.
            process: name of this process's service.
            one_in: one task of this many is sampled.
            max_links: links that a span keeps.
            on_spans: counts spans; see `setup.start`.
        """
        self.run = run
        self.one_in = one_in
        # The SDK logs each failure with a traceback; `_Sender` logs the first one.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(endpoint=endpoint or None, timeout=_TIMEOUT_SECONDS)
        self.endpoint = endpoint or "the backend that the environment names"
        self._sender = _Sender(exporter, where=self.endpoint, on_spans=on_spans)
        self._ids = _Ids()
        version = _version()
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create(
                {
                    "service.name": f"fairlead-{process.replace('_', '-')}",
                    "service.namespace": "fairlead",
                    "service.version": version,
                    "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
                    "fairlead.run": run,
                }
            ),
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(max_links=max_links),
        )
        provider.add_span_processor(self._sender)
        self._tracer = provider.get_tracer("fairlead", version)

    def start(self, name: str, start: Start) -> Span:
        """Begin a span; see `spans.Recorder`."""
        parent = (
            Context()
            if start.parent is None
            else trace.set_span_in_context(trace.NonRecordingSpan(_to_sdk(start.parent)), Context())
        )
        with self._ids.given(start.context):
            return _Recorded(
                self._tracer.start_span(
                    name,
                    parent,
                    kind=_KINDS[start.kind],
                    attributes=dict(start.attributes),
                    links=[trace.Link(_to_sdk(context)) for context in start.links],
                    start_time=start.start_ns,
                )
            )

    def close(self) -> None:
        """Send what is left, for at most two seconds."""
        self._sender.shutdown()


class _Recorded(Span):
    """A span that is recorded."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        found = span.get_span_context()
        super().__init__(SpanContext(found.trace_id, found.span_id, is_sampled=True))
        self._span = span

    def set(self, **attributes: Value) -> None:
        self._span.set_attributes(attributes)

    def link(self, context: SpanContext) -> None:
        self._span.add_link(_to_sdk(context))

    def fail(self, reason: str) -> None:
        self._span.set_status(trace.Status(trace.StatusCode.ERROR, reason))

    def end(self, *, end_ns: int | None = None) -> None:
        self._span.end(end_ns)


class _Ids(IdGenerator):
    """Generates random ids, or gives the ones that were derived."""

    def __init__(self) -> None:
        self._given = threading.local()

    def given(self, context: SpanContext | None) -> _Given:
        """Give the ids of a context to the span that this thread begins."""
        return _Given(self._given, context)

    def generate_trace_id(self) -> int:
        """Return the trace id of a first span."""
        context: SpanContext | None = getattr(self._given, "context", None)
        return int.from_bytes(os.urandom(16)) if context is None else context.trace_id

    def generate_span_id(self) -> int:
        """Return the id of a span. Not of `random`, which programs seed."""
        context: SpanContext | None = getattr(self._given, "context", None)
        return int.from_bytes(os.urandom(8)) if context is None else context.span_id


class _Given:
    """Sets the ids of a thread's next span, and removes them."""

    __slots__ = ("_context", "_place")

    def __init__(self, place: threading.local, context: SpanContext | None) -> None:
        self._place = place
        self._context = context

    def __enter__(self) -> None:
        self._place.context = self._context

    def __exit__(self, *_: object) -> None:
        self._place.context = None


class _Sender(SpanProcessor):
    """A bounded queue of ended spans, and the thread that sends them."""

    def __init__(self, exporter: SpanExporter, *, where: str, on_spans: Callable[[str, int], None]) -> None:
        self._exporter = exporter
        self._where = where
        self._on_spans = on_spans
        self._waiting: deque[ReadableSpan] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._is_down = False
        self._thread = threading.Thread(target=self._send, name="traces", daemon=True)
        self._thread.start()

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span; never waits."""
        with self._changed:
            is_full = len(self._waiting) >= MAX_WAITING or self._closing
            if not is_full:
                self._waiting.append(span)
                if len(self._waiting) == _BATCH:
                    self._changed.notify()
        if is_full:
            self._on_spans("dropped", 1)

    def shutdown(self) -> None:
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

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return whether nothing waits; sending is the thread's."""
        return not self._waiting

    def _send(self) -> None:
        while True:
            with self._changed:
                if not self._closing and len(self._waiting) < _BATCH:
                    self._changed.wait(EVERY_SECONDS)
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                closing = self._closing
            if batch:
                self._export(batch)
            elif closing:
                return

    def _export(self, batch: list[ReadableSpan]) -> None:
        begun = time.monotonic()
        try:
            sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
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


def _to_sdk(context: SpanContext) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.is_sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=flags)
