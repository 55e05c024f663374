"""A bar on standard error that says how far a long piece of work is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(what: str, *, total: int | None, shown: bool, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives a function that moves the bar by so many; silent where nobody looks.

    Args:
        what: goes on.
        total: how many there are; None if that is not known.
        shown: whether it is wanted; without a terminal it is not there anyway.
        done: how many were done before.
    """
    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
