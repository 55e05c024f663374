"""The logging setup of every process: JSON lines in services, human-readable lines on a terminal.

Formatters write records as they are: code that logs must not pass the texts of prompts or responses.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_MAX_CHARACTERS = 20_000
"""Limit on a message, on a text field, and on a traceback."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, marks that change the direction of text, and surrogates."""


_BOUND: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default={})  # noqa: B039 - never changed
_SOURCES: list[Callable[[], Mapping[str, object]]] = []


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add fields to every JSON line that the body logs, and the asyncio tasks that it creates."""
    token = _BOUND.set({**_BOUND.get(), **fields})
    try:
        yield
    finally:
        _BOUND.reset(token)


def bind(**fields: object) -> None:
    """Add fields to every JSON line that this thread logs from now on."""
    _BOUND.set({**_BOUND.get(), **fields})


def add_source(fields: Callable[[], Mapping[str, object]]) -> None:
    """Call a function for further fields of every JSON line; once is enough."""
    if fields not in _SOURCES:
        _SOURCES.append(fields)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time (UTC, ISO 8601), level, logger, what is bound, message, and
    `extra` fields.
    """

    def __init__(self, fields: Mapping[str, object] | None = None) -> None:
        """`fields` are added to every line."""
        super().__init__()
        self._fields = dict(fields or {})

    _standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._fields,
            **_BOUND.get(),
        }
        for source in _SOURCES:
            entry.update(source())
        extra = {key: value for key, value in vars(record).items() if key not in self._standard}
        if record.exc_info:
            extra["exception"] = self.formatException(record.exc_info)
        entry["message"] = _bounded(record.getMessage())
        entry.update(
            {key: _bounded(value) if isinstance(value, str) else value for key, value in extra.items()}
        )
        line = json.dumps(entry, default=str, ensure_ascii=False)
        return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


class HumanFormatter(logging.Formatter):
    """Formats a record as one line for a terminal; only a traceback has more lines.

    Control characters of a message are escaped: a caller's name or path must not start a line of its own or
    move the cursor.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides logging's method
        """Return the line of the record, without its traceback."""
        record.message = _CONTROL.sub(_escaped, _bounded(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 - overrides logging's method
        """Return a traceback, in which control characters are escaped, too."""
        lines = _bounded(super().formatException(ei)).split("\n")
        return "\n".join(_CONTROL.sub(_escaped, line) for line in lines)


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def _bounded(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} … ({len(text)} characters) … {text[-half:]}"


class LogSummary:
    """Logs events that come in great numbers: the first few of a kind, then only how many more there were.

    Used within event loops. The other events are logged at DEBUG.
    """

    def __init__(
        self, logger: logging.Logger, *, level: int = logging.INFO, shown: int = 3, seconds: float = 10.0
    ) -> None:
        """
        Args:
            logger: where the events are logged.
            level: level of the lines.
            shown: events of a kind that are logged in one period.
            seconds: length of a period; at its end comes the line with the number of the others.
        """
        self._logger = logger
        self._level = level
        self._shown = shown
        self._seconds = seconds
        self._periods: dict[str, _Period] = {}

    def add(self, kind: str, detail: object, *, extra: Mapping[str, object] | None = None) -> None:
        """Log an event as `kind: detail`, or count it. `kind` is one of a few texts, never a caller's."""
        now = time.monotonic()
        period = self._periods.get(kind)
        if period is None or now - period.began > 2 * self._seconds:  # its event loop has ended
            period = self._periods[kind] = _Period(now)
            asyncio.get_running_loop().call_later(self._seconds, self._sum_up, kind, period)
        period.seen += 1
        level = self._level if period.seen <= self._shown else logging.DEBUG
        self._logger.log(level, "%s: %s", kind, detail, extra=extra)

    def _sum_up(self, kind: str, period: _Period) -> None:
        if self._periods.get(kind) is period:
            del self._periods[kind]
        more = period.seen - self._shown
        if more > 0:
            self._logger.log(self._level, "%s: %d more in %g s", kind, more, self._seconds)


@dataclass(slots=True, eq=False)
class _Period:
    """The events of one kind since the first that was logged."""

    began: float
    seen: int = 0


def setup(
    *,
    style: Literal["json", "human", "auto"] = "auto",
    level: str = "INFO",
    fields: Mapping[str, object] | None = None,
) -> None:
    """Send all log records to standard error.

    Args:
        style: `auto` for human-readable lines if standard error is a terminal, else JSON.
        level: lowest level logged.
        fields: added to every line of JSON.
    """
    if style == "auto":
        style = "human" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter(fields))
    else:
        handler.setFormatter(HumanFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "urllib3", "transformers", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def current() -> tuple[Literal["json", "human"], str]:
    """Return the style and the level of this process's log, for the processes that it starts."""
    root = logging.getLogger()
    is_json = any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers)
    return "json" if is_json else "human", logging.getLevelName(root.level)
