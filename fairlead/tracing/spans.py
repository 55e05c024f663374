"""The spans of this process: what the rest of the code calls, whether tracing is on or not.

Off, or in a trace that is not sampled, every call returns at once and nothing is recorded. Knows nothing
about OpenTelemetry: `export` records and sends.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

from fairlead.tracing import context as ids
from fairlead.tracing.context import NOT_SAMPLED, SpanContext

Value = str | int | float | bool
"""Type of an attribute."""
Kind = Literal["internal", "server", "client"]


class Span:
    """A span in progress. This base records nothing: it is the span of another process, or not sampled."""

    __slots__ = ("context",)

    def __init__(self, context: SpanContext | None = None) -> None:
        self.context = context
        """Its identity; None while tracing is off."""

    @property
    def is_recorded(self) -> bool:
        """Whether this trace is recorded."""
        return self.context is not None and self.context.is_sampled

    def set(self, **attributes: Value) -> None:
        """Add attributes."""

    def link(self, context: SpanContext) -> None:
        """Refer to a span of another trace."""

    def fail(self, reason: str) -> None:
        """Mark it as failed."""

    def end(self, *, end_ns: int | None = None) -> None:
        """End it, now or at a time."""


NO_SPAN = Span()
"""Every span while tracing is off."""
_NOT_SAMPLED = Span(NOT_SAMPLED)
"""The span of every task that is not sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a span begins."""

    parent: SpanContext | None = None
    """The span that it is part of; None for the first span of a trace."""
    context: SpanContext | None = None
    """Its own identity; None for a new one."""
    kind: Kind = "internal"
    """Whether it is an end of a call."""
    start_ns: int | None = None
    """When it began, in ns since the epoch; None for now."""
    links: Sequence[SpanContext] = ()
    """Spans of other traces that it refers to."""
    attributes: Mapping[str, Value]
    """What it was about."""


class Recorder(Protocol):
    """Records the spans of a process that traces."""

    run: str
    """Name of the run."""
    one_in: int
    """One task, or call without a trace, of this many is sampled."""

    def start(self, name: str, start: Start) -> Span:
        """Begin a span."""
        ...


_recorder: Recorder | None = None
_CURRENT: ContextVar[Span | None] = ContextVar("span", default=None)


def use(recorder: Recorder | None) -> None:
    """Record the spans of this process from now on; None: record nothing."""
    global _recorder  # noqa: PLW0603 - one for a process, like the log
    _recorder = recorder


def is_on() -> bool:
    """Return whether this process traces."""
    return _recorder is not None


def current() -> Span | None:
    """Return the span that the running code is part of."""
    return _CURRENT.get() if _recorder is not None else None


def traceparent() -> str | None:
    """Return the header for a call made now; None without a span."""
    span = current()
    return None if span is None or span.context is None else span.context.traceparent


def exemplar() -> dict[str, str] | None:
    """Return the exemplar for a measured time: the trace id, if the trace is recorded."""
    return exemplar_of(_CURRENT.get()) if _recorder is not None else None


def exemplar_of(span: Span | None) -> dict[str, str] | None:
    """Return the exemplar of a span; see `exemplar`."""
    if span is None or span.context is None or not span.context.is_sampled:
        return None
    return {"trace_id": f"{span.context.trace_id:032x}"}


def log_fields() -> dict[str, object]:
    """Return the fields of a log line that name the trace, if it is recorded."""
    return dict(exemplar() or {})


def task_context(task: int, sending: tuple[int, int]) -> SpanContext | None:
    """Return the identity of a sending's first span; None while tracing is off."""
    if _recorder is None:
        return None
    return ids.of_task(_recorder.run, task, sending, one_in=_recorder.one_in)


def update_context(incarnation: int, update: int) -> SpanContext | None:
    """Return the identity of the span of an update, by the version that it produced; None while off."""
    return None if _recorder is None else ids.of_update(_recorder.run, incarnation, update)


class _Within:
    """Makes a span the present one. A class, since a generator costs several times as much for each task."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[Span | None] | None = None

    def __enter__(self) -> Span:
        self._token = _CURRENT.set(self._span)
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _CURRENT.reset(self._token)


class _Recording(_Within):
    """Makes a span the present one and ends it. An exception marks it as failed."""

    __slots__ = ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is not None:
            self._span.fail(kind.__name__)
        self._span.end()


class _Nothing:
    """Runs code as a part of the present span, and records nothing."""

    __slots__ = ()

    def __enter__(self) -> Span:
        return NO_SPAN

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""


_NOTHING = _Nothing()


def part_of(context: SpanContext | None) -> AbstractContextManager[Span]:
    """Run code as a part of a span of another process."""
    if _recorder is None or context is None:
        return _NOTHING
    return _Within(_NOT_SAMPLED if context is NOT_SAMPLED else Span(context))


def span(
    name: str,
    *,
    kind: Kind = "internal",
    links: Sequence[SpanContext] = (),
    attributes: Mapping[str, Value] | None = None,
) -> AbstractContextManager[Span]:
    """Record code as a span within the present one; nothing without one. An exception marks it as failed.

    Args:
        name: what the code does; one of a few words.
        kind: whether it is an end of a call.
        links: spans of other traces.
        attributes: what it is about.
    """
    if _recorder is None:
        return _NOTHING
    parent = _CURRENT.get()
    if parent is None or parent.context is None or not parent.context.is_sampled:
        return _NOTHING
    return _Recording(
        _recorder.start(
            name, Start(parent=parent.context, kind=kind, links=links, attributes=attributes or {})
        )
    )


def joined(
    name: str, spans: Sequence[Span | None], *, attributes: Mapping[str, Value]
) -> AbstractContextManager[Span]:
    """Record a call that answers several callers at once, and run it as a part of that span.

    It is part of the first trace that is recorded, with links to the spans of the others, which get a link to
    it. If none is recorded, the services that are called record nothing either.

    Args:
        name: what is called.
        spans: the span of each caller.
        attributes: what it is about.
    """
    if _recorder is None:
        return _NOTHING
    known = [(each, each.context) for each in spans if each is not None and each.context is not None]
    sampled = [(each, context) for each, context in known if context.is_sampled]
    if not sampled:
        return part_of(known[0][1] if known else None)
    (_, parent), *others = sampled
    links = [context for _, context in others]
    begun = _recorder.start(name, Start(parent=parent, kind="client", links=links, attributes=attributes))
    for other, _ in others:
        if begun.context is not None:
            other.link(begun.context)
    return _Recording(begun)


def serve(
    name: str, received: str | None, *, start_ns: int, within: bool = False, attributes: Mapping[str, Value]
) -> Span:
    """Begin the span of a request that this process answers; the rest of the asyncio task is part of it.

    Args:
        name: the method.
        received: the caller's `traceparent`; without a valid one a new trace begins, if it is sampled.
        start_ns: when the request arrived.
        within: without a `traceparent`, it is part of the present span instead.
        attributes: what it is about.
    """
    if _recorder is None:
        return NO_SPAN
    parent = SpanContext.parse(received)
    if parent is None and within and (outer := _CURRENT.get()) is not None:
        parent = outer.context
    if parent is None:
        trace_id = int.from_bytes(secrets.token_bytes(16))
        is_sampled = ids.is_sampled(trace_id, _recorder.one_in)
        root = SpanContext(trace_id, int.from_bytes(secrets.token_bytes(8)), is_sampled)
        begins = Start(context=root, kind="server", start_ns=start_ns, attributes=attributes)
        begun = _recorder.start(name, begins) if is_sampled else Span(root)
    elif parent.is_sampled:
        begun = _recorder.start(
            name, Start(parent=parent, kind="server", start_ns=start_ns, attributes=attributes)
        )
    else:
        begun = _NOT_SAMPLED if parent is NOT_SAMPLED else Span(parent)
    _CURRENT.set(begun)
    return begun


def record(name: str, start: Start, *, end_ns: int | None = None) -> SpanContext | None:
    """Record a span that has ended, and return its identity; None while tracing is off.

    Args:
        name: what was done.
        start: how it began.
        end_ns: when it ended, in ns since the epoch; None for now.
    """
    if _recorder is None:
        return None
    begun = _recorder.start(name, start)
    begun.end(end_ns=end_ns or time.time_ns())
    return begun.context
