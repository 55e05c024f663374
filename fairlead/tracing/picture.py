"""Draws a trace as text: a tree of spans with a bar for the time of each.

Where a task was trained, the rest of the update is drawn beneath it: the two traces refer to each other.
Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fairlead.tracing.stored import StoredSpan

_NAMES = 30
_SERVICES = 14
_FIGURES = 18
_SHOWN = ("fairlead.worker", "fairlead.tasks", "fairlead.tokens", "fairlead.version", "fairlead.result")
"""Attributes that a line shows."""


@dataclass(frozen=True, slots=True)
class _Row:
    depth: int
    span: StoredSpan
    is_linked: bool = False


def draw(spans: Sequence[StoredSpan], trace_id: str, *, columns: int = 100) -> list[str]:
    """Return the lines of a picture.

    Args:
        spans: all spans that are known.
        trace_id: the trace to draw.
        columns: width of a line.
    """
    rows = list(_rows(spans, trace_id))
    if not rows:
        return []
    begun = min(row.span.begun for row in rows)
    ended = max(row.span.ended for row in rows)
    first = rows[0].span
    about = [f"trace {trace_id}"]
    if "fairlead.task" in first.attributes:
        about.insert(0, f"task {first.attributes['fairlead.task']}")
    if "fairlead.sending" in first.attributes:
        about.insert(1, f"sending {first.attributes['fairlead.sending']}")
    if first.run:
        about.insert(0, f"run {first.run}")
    width = max(10, columns - _NAMES - _SERVICES - _FIGURES - 3)
    lines = [" · ".join(about), _header(width, ended - begun)]
    return lines + [_line(row, begun, ended, width) for row in rows]


def _rows(spans: Sequence[StoredSpan], trace_id: str) -> Iterator[_Row]:
    mine = [span for span in spans if span.trace_id == trace_id]
    known = {span.span_id for span in mine}
    # The process of a parent may have been killed before it ended.
    firsts = [span for span in mine if span.parent_id not in known]
    roots = sorted(firsts, key=lambda span: (bool(span.parent_id), span.begun))
    for root in roots:
        for row in _tree(mine, root, 0 if not root.parent_id or root is roots[0] else 1):
            yield row
            if row.span.name == "train":
                yield from _update(spans, row)


def _tree(spans: Sequence[StoredSpan], span: StoredSpan, depth: int) -> Iterator[_Row]:
    yield _Row(depth, span)
    for child in spans:
        if child.parent_id == span.span_id and child is not span:
            yield from _tree(spans, child, depth + 1)


def _update(spans: Sequence[StoredSpan], train: _Row) -> Iterator[_Row]:
    """Yield what followed the gradient step, from the trace of its update."""
    for linked, _ in train.span.links:
        mine = [span for span in spans if span.trace_id == linked]
        for root in (span for span in mine if not span.parent_id):
            for child in mine:
                if child.parent_id == root.span_id and child.begun >= train.span.ended - 1e-3:
                    for row in _tree(mine, child, train.depth + 1):
                        yield _Row(row.depth, row.span, is_linked=True)


def _header(width: int, seconds: float) -> str:
    end = f"{seconds:.3f} s"
    return " " * (_NAMES + _SERVICES + _FIGURES + 3) + "0" + end.rjust(width - 1)


def _line(row: _Row, begun: float, ended: float, width: int) -> str:
    span = row.span
    name = "  " * row.depth + ("⇢ " if row.is_linked else "") + span.name
    figures = f"{span.begun - begun:8.3f} {span.ended - span.begun:8.3f}s"
    scale = width / max(ended - begun, 1e-9)
    start = min(width - 1, int((span.begun - begun) * scale))
    length = max(1, round((span.ended - span.begun) * scale))
    bar = " " * start + ("█" if span.ended - span.begun > 1 / scale else "▏") * min(length, width - start)
    shown = [f"{key.partition('.')[2]} {span.attributes[key]}" for key in _SHOWN if key in span.attributes]
    if span.error:
        shown.insert(0, f"failed: {span.error}")
    service = span.service.removeprefix("fairlead-")
    line = f"{name[:_NAMES]:{_NAMES}} {service[:_SERVICES]:{_SERVICES}} {figures:>{_FIGURES}} {bar:{width}}"
    return (line + ("  " + ", ".join(shown) if shown else "")).rstrip()
