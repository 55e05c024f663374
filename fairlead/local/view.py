"""What a person sees while a run works: a live picture on a terminal, log lines elsewhere.

Reads `progress.json` and the supervisor's processes; changes nothing. Events are lines of the log, which on a
terminal scroll above the picture.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fairlead.local import progress
from fairlead.local.process import Process, State
from fairlead.local.progress import Progress

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.25
_LINE_SECONDS = 5.0
_STYLES = {
    State.WAITING: "dim",
    State.STARTING: "yellow",
    State.READY: "green",
    State.BACKOFF: "red",
    State.STOPPING: "yellow",
    State.ENDED: "dim",
}
# What a person asks first; other figures follow in the stage's own order where there is room.
_FIRST_FIGURES = (
    *("reward", "kl", "tokens_per_second", "response_length", "entropy", "clip_fraction", "eos_rate"),
    *("loss", "accuracy"),
)
_NAMES = {"kl": "KL", "tokens_per_second": "tokens/s", "response_length": "length"}
_FIRST_RESULTS = (
    *("heldout_loss", "accuracy", "ece", "updates", "episodes", "proxy_first", "proxy_last", "kl"),
    *("tasks_lost", "tasks_duplicated", "dead_letters", "seconds"),
)
_HIDDEN = ("seconds", "queue_", "update", "tokens", "steps")


class View:
    """One run's picture: title, progress, figures, a row per process."""

    def __init__(self, title: str, *, stage: str, path: Path, processes: Sequence[Process]) -> None:
        self._title = title
        self._stage = stage
        self._path = path
        self._processes = processes
        self._begun = time.monotonic()
        self._said = ""
        self._newest: Progress | None = None

    async def show(self, console: Console) -> None:
        """Shows the run until cancelled."""
        await (self._live(console) if console.is_terminal else self._lines())

    async def _live(self, console: Console) -> None:
        with (
            Live(self.picture(console.width), console=console, auto_refresh=False, transient=True) as live,
            _log_above(console),
        ):
            while True:
                live.update(self.picture(console.width), refresh=True)
                await asyncio.sleep(_REFRESH_SECONDS)

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            self.say()

    def say(self) -> None:
        """Logs the run's line, unless it is the one that was logged last."""
        line = self.line()
        if line != self._said:
            logger.info("%s", line)
        self._said = line

    def line(self) -> str:
        """The run in one line."""
        now = self.read()
        if now is None:
            waits = [process.name for process in self._processes if process.state is not State.READY]
            return "starting" + (f", waiting for {', '.join(waits)}" if waits else "")
        return progress_line(now)

    def picture(self, width: int) -> RenderableType:
        """The run as a picture of at most `width` columns."""
        now = self.read()
        parts: list[RenderableType] = [self._headline(now, width)]
        if now is not None:
            bar = Table.grid()
            bar.add_row(ProgressBar(total=max(1, now.total), completed=now.step, width=min(width, 100)))
            parts += [bar]
            parts += [_figures_line(now, width)]
        parts += [self._rows(width)]
        return Group(*parts)

    def read(self) -> Progress | None:
        """What the stage said last; None if it said nothing yet."""
        found = progress.read(self._path)
        if found is not None and found.stage == self._stage:
            self._newest = found
        return self._newest

    def _headline(self, now: Progress | None, width: int) -> Text:
        unit = "update" if self._stage == "ppo" else "step"
        parts = ["starting" if now is None else f"{unit} {now.step} of {now.total}"]
        parts.append(duration(time.monotonic() - self._begun))
        if now is not None and now.eta_seconds is not None and now.step < now.total:
            parts.append(f"ETA {duration(now.eta_seconds)}")
        return headline(self._title, parts, width)

    def _rows(self, width: int) -> Table:
        now = time.monotonic()
        columns: list[tuple[str, list[Text]]] = [
            ("process", [Text(process.name) for process in self._processes]),
            ("state", [Text(_state(process), _STYLES[process.state]) for process in self._processes]),
            ("restarts", [_restarts(process) for process in self._processes]),
            ("pid", [Text(str(process.pid or "–")) for process in self._processes]),
            ("up", [Text(_up(process, now)) for process in self._processes]),
            ("log", [Text(_short(process.log), "dim") for process in self._processes]),
        ]
        return columns_that_fit(columns, width)


def progress_line(now: Progress) -> str:
    """What a stage does, in one line."""
    parts = [f"{now.stage} {now.step}/{now.total}", phase(now)]
    parts += [f"{name} {value}" for name, value in list(figures(now).values())[:6]]
    if now.eta_seconds is not None and now.step < now.total:
        parts.append(f"ETA {duration(now.eta_seconds)}")
    return " · ".join(parts)


def figures(now: Progress) -> dict[str, tuple[str, str]]:
    """By name: a figure's name for people and its value, the most telling first."""
    order = [name for name in _FIRST_FIGURES if name in now.figures]
    order += [name for name in now.figures if name not in order and not name.startswith(_HIDDEN)]
    return {name: (_NAMES.get(name, name.replace("_", " ")), number(now.figures[name])) for name in order}


def headline(title: str, parts: Sequence[str | Text], width: int) -> Text:
    """Title and parts in one line; where they do not fit, the folders before the run's own go first."""
    line = Text(" · ").join([Text(title, style="bold"), *(Text() + part for part in parts)])
    line.no_wrap, line.overflow = True, "ellipsis"
    if line.cell_len > width and "/" in title:
        return headline(title.rpartition("/")[2], parts, width)
    line.truncate(width, overflow="ellipsis")
    return line


def columns_that_fit(columns: Sequence[tuple[str, Sequence[Text]]], width: int) -> Table:
    """A table of the first columns that fit into the width, none of them wrapped.

    Args:
        columns: names and cells, the most telling first.
        width: in characters.
    """
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown, left = [], width
    for name, cells in columns:
        # The state changes while it is looked at; its column must not.
        widest = max(len(name), *(len(cell) for cell in cells), 10 if name == "state" else 0)
        if widest > left:
            break
        left -= widest + 2
        numeric = name in ("restarts", "pid", "up")
        rows.add_column(name, justify="right" if numeric else "left", min_width=widest, no_wrap=True)
        shown.append(cells)
    for row in zip(*shown, strict=True):
        rows.add_row(*row)
    return rows


def result_figures(result: Mapping[str, object]) -> str:
    """What a person asks first of a stage's result, in one line."""
    return ", ".join(
        f"{name.replace('_', ' ')} {number(float(value))}"
        for name in _FIRST_RESULTS
        if isinstance(value := result.get(name), int | float)
    )


def number(value: float) -> str:
    """A figure in a few characters: 1,234 · 12.3 · 0.0123 · 1.2e-06."""
    size = abs(value)
    if size >= 1_000:
        return f"{value:,.0f}"
    if size >= 0.001 or size == 0:
        return f"{value:.3g}"
    return f"{value:.1e}"


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def phase(now: Progress) -> str:
    """What the stage does now, and what it waits for."""
    text = now.phase
    if now.waiting_for:
        text += f" for {now.waiting_for}" if now.phase == "wait" else f", waiting for {now.waiting_for}"
    return text


def _figures_line(now: Progress, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(phase(now), style="cyan")
    if now.since and now.phase != "done":
        line.append(f" {max(0.0, time.time() - now.since):.0f} s", style="dim")
    line.truncate(width, overflow="ellipsis")
    second = Text(no_wrap=True)
    for name, value in figures(now).values():
        piece = f"{name} {value}"
        if second.cell_len + len(piece) + 3 > width:
            break
        second.append("   " if second.cell_len else "")
        second.append(f"{name} ", style="dim").append(value, style="bold")
    return Text("\n").join([line, second]) if second.cell_len else line


def _state(process: Process) -> str:
    # Who has no probe never said that it is ready.
    if process.state is State.READY and process.spec.probe is None:
        return "running"
    return process.state.value


def _restarts(process: Process) -> Text:
    return Text(str(process.restarts), "red" if process.restarts else "dim")


def _up(process: Process, now: float) -> str:
    return duration(now - process.started_at) if process.pid else "–"


def _short(path: Path) -> str:
    """Relative to where the user is, if that is shorter."""
    with contextlib.suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


class _ConsoleHandler(logging.Handler):
    """Prints above the live picture."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """One line, coloured by its level."""
        style = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}.get(record.levelname, "")
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        self._console.print(Text.assemble((f"{clock} ", "dim"), (record.getMessage(), style)))


@contextlib.contextmanager
def _log_above(console: Console) -> Iterator[None]:
    handler = _ConsoleHandler(console)
    root = logging.getLogger()
    # The plain lines on standard error would tear the picture.
    quiet = [other for other in root.handlers if type(other) is logging.StreamHandler]
    for other in quiet:
        root.removeHandler(other)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for other in quiet:
            root.addHandler(other)
