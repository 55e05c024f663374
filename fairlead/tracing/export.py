"""Records spans, and sends them as OTLP in a thread of its own. Needs the extra `otel`.

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
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource

from fairlead.tracing.context import SpanContext
from fairlead.tracing.post import Post
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
    "internal": trace_pb2.Span.SPAN_KIND_INTERNAL,
    "server": trace_pb2.Span.SPAN_KIND_SERVER,
    "client": trace_pb2.Span.SPAN_KIND_CLIENT,
}
_LOCAL = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
"""Parents and links may be those of other processes."""


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
        post = Post(endpoint, timeout_seconds=_TIMEOUT_SECONDS)
        encode = _Encoder(resource, version)
        self._sender = _Sender(post, where=self.endpoint, on_spans=on_spans, encode=encode)

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
    """A span that is recorded. It is encoded in the thread that sends it."""

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
        post: Post,
        *,
        where: str,
        on_spans: Callable[[str, int], None],
        encode: Callable[[Sequence[_Recorded]], bytes],
    ) -> None:
        self._post = post
        self._encode = encode
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
        self._post.close()
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
        try:
            reason = self._post(self._encode(batch))
        except Exception as error:  # noqa: BLE001 - the backend never stops the run
            reason = f"{type(error).__name__}: {error}"
        sent = not reason
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


class _Encoder:
    """Encodes spans as OTLP, with the resource of this process."""

    def __init__(self, resource: Resource, version: str) -> None:
        self._resource = resource_pb2.Resource(attributes=_attributes(resource.attributes))
        self._scope = common_pb2.InstrumentationScope(name="fairlead", version=version)

    def __call__(self, spans: Sequence[_Recorded]) -> bytes:
        scope = trace_pb2.ScopeSpans(scope=self._scope, spans=map(_encoded, spans))
        resource = trace_pb2.ResourceSpans(resource=self._resource, scope_spans=[scope])
        return ExportTraceServiceRequest(resource_spans=[resource]).SerializeToString()


def _encoded(span: _Recorded) -> trace_pb2.Span:
    parent = span.start.parent
    assert span.context is not None
    return trace_pb2.Span(
        trace_id=span.context.trace_id.to_bytes(16),
        span_id=span.context.span_id.to_bytes(8),
        parent_span_id=b"" if parent is None else parent.span_id.to_bytes(8),
        flags=_LOCAL if parent is None else _REMOTE,
        name=span.name,
        kind=_KINDS[span.start.kind],
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=_attributes(span.attributes),
        links=[
            trace_pb2.Span.Link(
                trace_id=each.trace_id.to_bytes(16), span_id=each.span_id.to_bytes(8), flags=_REMOTE
            )
            for each in span.links
        ],
        status=trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message=span.error)
        if span.error
        else None,
    )


def _attributes(attributes: Mapping[str, object]) -> list[common_pb2.KeyValue]:
    return [common_pb2.KeyValue(key=key, value=_value(value)) for key, value in attributes.items()]


def _value(value: object) -> common_pb2.AnyValue:
    if isinstance(value, str):
        return common_pb2.AnyValue(string_value=value)
    if isinstance(value, bool):
        return common_pb2.AnyValue(bool_value=value)
    if isinstance(value, int):
        return common_pb2.AnyValue(int_value=value)
    if isinstance(value, float):
        return common_pb2.AnyValue(double_value=value)
    return common_pb2.AnyValue(string_value=str(value))
