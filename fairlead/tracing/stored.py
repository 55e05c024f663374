"""Reads traces from a file of OTLP in JSON lines, and finds those of a task.

Written by `fairlead traces collect`, or by the file exporter of an OpenTelemetry collector. Needs no other
package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.errors import DataError


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """A span that has ended."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    parent_id: str
    """Of the span that it is part of; empty for the first one."""
    name: str
    """What was done."""
    begun: float
    """Unix time in seconds."""
    ended: float
    """Unix time in seconds."""
    service: str
    """Name of the process's service, such as `fairlead-policy`."""
    run: str
    """Name of the run."""
    attributes: Mapping[str, str | int | float | bool]
    """What it was about."""
    links: Sequence[tuple[str, str]]
    """Trace and span that it refers to."""
    error: str
    """Why it failed; empty if it did not."""


def read(path: Path) -> list[StoredSpan]:
    """Return the spans of a file, sorted by their beginning.

    A last line without an end, which is being written, is left out.

    Raises:
        DataError: if another line is not OTLP in JSON; names the line.
        OSError: if the file cannot be read.
    """
    found: list[StoredSpan] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            found += _spans(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                str(path),
                number,
                got=f"{line[:60]!r} ({error})",
                allowed="OTLP in JSON, as `fairlead traces collect` writes it",
            ) from None
    return sorted(found, key=lambda span: span.begun)


def of_trace(spans: Sequence[StoredSpan], trace_id: str) -> list[StoredSpan]:
    """Return the spans of a trace."""
    return [span for span in spans if span.trace_id == trace_id]


def traces_of_tasks(spans: Sequence[StoredSpan], *, run: str | None, task: int | None) -> list[str]:
    """Return the ids of the traces of tasks, in the order of their dispatch.

    Args:
        spans: all spans.
        run: only tasks of this run.
        task: only this task.
    """
    wanted = (
        span.trace_id
        for span in spans
        if "fairlead.task" in span.attributes
        and (run is None or span.run == run)
        and (task is None or span.attributes["fairlead.task"] == task)
    )
    return list(dict.fromkeys(wanted))


def _spans(request: Mapping[str, Any]) -> Iterator[StoredSpan]:
    for resource in request["resourceSpans"]:
        about = _attributes(resource.get("resource", {}))
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                yield StoredSpan(
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    name=span["name"],
                    begun=int(span["startTimeUnixNano"]) / 1e9,
                    ended=int(span["endTimeUnixNano"]) / 1e9,
                    service=str(about.get("service.name", "")),
                    run=str(about.get("fairlead.run", "")),
                    attributes=_attributes(span),
                    links=[(link["traceId"], link["spanId"]) for link in span.get("links", ())],
                    error=_error(span.get("status", {})),
                )


def _attributes(holder: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    for attribute in holder.get("attributes", ()):
        for kind, value in attribute.get("value", {}).items():
            if kind == "intValue":
                found[attribute["key"]] = int(value)
            elif kind in ("stringValue", "doubleValue", "boolValue"):
                found[attribute["key"]] = value
    return found


def _error(status: Mapping[str, Any]) -> str:
    failed = status.get("code") in (2, "STATUS_CODE_ERROR")
    return str(status.get("message", "") or "failed") if failed else ""
