"""Tables in Markdown, printed and kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table whose first columns are texts and whose others are numbers; empty without rows."""
    if not rows:
        return ""
    rule = "---|" * texts + "--:|" * (len(header) - texts)
    lines = [f"| {' | '.join(header)} |", f"|{rule}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def show(text: str, file: Path) -> None:
    """Print a table and keep it."""
    print(text)
    file.write_text(text + "\n")
    print(f"in {file}", file=sys.stderr)
