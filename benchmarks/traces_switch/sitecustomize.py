"""Switches the traces of a running process on and off. Python imports it at its start, from PYTHONPATH.

A process that traces does so while the file exists that SWITCH_FILE names; when it is switched off, it sends
the spans that wait. Until the first time, the CPU time of each call of `fairlead.tracing` is added up, and
then written to a file beside the switch. Part of `benchmarks.traces`.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from functools import wraps
from typing import Any

_POLL_SECONDS = 0.05
_FLUSH_SECONDS = 0.15
_CALIBRATION = 20_000
_CALLS = (
    *("current", "exemplar", "exemplar_of", "joined", "part_of", "record", "serve", "span", "task_context"),
    *("traceparent", "update_context"),
)


class Account:
    """Adds up the CPU time of calls, until it is closed.

    Collections of garbage do not count: they happen in any call that makes an object, and take 0.2 s where a
    model has left many.
    """

    def __init__(self) -> None:
        self._spent_ns: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._clock_ns = 0.0
        self._of_thread = threading.local()
        self._replaced: list[tuple[Any, str, Any]] = []

    def begin(self) -> None:
        """Measure every call that records or sends, by each thread."""
        from fairlead import tracing
        from fairlead.tracing import export, spans

        nothing = self._measured("nothing", lambda: None)
        for _ in range(_CALIBRATION):
            nothing()
        self._clock_ns = self._spent_ns.pop("nothing") / self._calls.pop("nothing")
        gc.callbacks.append(self._collecting)
        for owner, names in (
            (tracing, _CALLS),
            (spans._Within, ("__enter__", "__exit__")),
            (spans._Recording, ("__exit__",)),
            (export._Recorded, ("set", "link", "end")),
            (export._Sender, ("_export",)),
        ):
            for name in names:
                original = getattr(owner, name)
                self._replaced.append((owner, name, original))
                setattr(owner, name, self._measured(f"{owner.__name__.rpartition('.')[2]}.{name}", original))

    def end(self, file: str) -> None:
        """Measure no more, and write name, calls and seconds, without those of the looks at the clock."""
        for owner, name, original in self._replaced:
            setattr(owner, name, original)
        gc.callbacks.remove(self._collecting)
        with open(file, "w", encoding="utf-8") as out:
            for name, calls in self._calls.items():
                out.write(f"{name} {calls} {(self._spent_ns[name] - calls * self._clock_ns) / 1e9}\n")

    def _measured(self, name: str, original: Any) -> Any:  # noqa: ANN401 - any function
        self._spent_ns[name] = self._calls[name] = 0

        @wraps(original)
        def measured(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            collected = self._collected_ns()
            begun = time.thread_time_ns()
            try:
                return original(*arguments, **options)
            finally:
                # Threads may lose an addition to one another: one of many thousands.
                spent = time.thread_time_ns() - begun
                self._spent_ns[name] += spent - (self._collected_ns() - collected)
                self._calls[name] += 1

        return measured

    def _collected_ns(self) -> int:
        return getattr(self._of_thread, "collected_ns", 0)

    def _collecting(self, phase: str, _: dict[str, int]) -> None:
        now = time.thread_time_ns()
        if phase == "start":
            self._of_thread.begun = now
        else:
            begun = getattr(self._of_thread, "begun", now)
            self._of_thread.collected_ns = self._collected_ns() + now - begun


class Switch:
    """Replaces `spans.use`, and lets the recorder of the process follow the file."""

    def __init__(self, file: str) -> None:
        from fairlead.tracing import spans

        self._file = file
        self._use = spans.use
        self._ended = threading.Event()
        spans.use = self.use

    def use(self, recorder: Any) -> None:  # noqa: ANN401 - imports nothing before it must
        """Record from now on, or never again."""
        if recorder is None:
            self._ended.set()
        else:
            threading.Thread(target=self._follow, args=(recorder,), daemon=True).start()
        self._use(recorder)

    def _follow(self, recorder: Any) -> None:  # noqa: ANN401
        account: Account | None = Account()
        assert account is not None
        account.begin()
        is_on = True
        while not self._ended.wait(_POLL_SECONDS):
            if os.path.exists(self._file) is is_on:
                continue
            is_on = not is_on
            self._use(recorder if is_on else None)
            if not is_on:
                recorder.flush()
            if account is not None:
                time.sleep(_FLUSH_SECONDS)
                account.end(f"{self._file}-{os.getpid()}")
                account = None


if "-m" in sys.orig_argv and "SWITCH_FILE" in os.environ:
    Switch(os.environ["SWITCH_FILE"])
