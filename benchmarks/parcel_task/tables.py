"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table whose first columns are texts and whose others are numbers; empty without rows."""
    if not rows:
        return ""
    rule = "---|" * texts + "--:|" * (len(header) - texts)
    lines = [f"| {' | '.join(header)} |", f"|{rule}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
