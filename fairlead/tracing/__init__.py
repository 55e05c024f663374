"""Traces: one follows a task from its dispatch to the gradient step, through every process of a run.

Off by default; with `observe.otlp_endpoint` spans are sent to any backend of OpenTelemetry (extra `otel`).
See docs/traces.md.
"""

from __future__ import annotations

from fairlead.tracing.context import SpanContext
from fairlead.tracing.setup import start
from fairlead.tracing.spans import (
    NO_SPAN,
    Span,
    Start,
    current,
    exemplar,
    exemplar_of,
    is_on,
    joined,
    part_of,
    record,
    serve,
    span,
    task_context,
    traceparent,
    update_context,
)

__all__ = [
    "NO_SPAN",
    "Span",
    "SpanContext",
    "Start",
    "current",
    "exemplar",
    "exemplar_of",
    "is_on",
    "joined",
    "part_of",
    "record",
    "serve",
    "span",
    "start",
    "task_context",
    "traceparent",
    "update_context",
]
