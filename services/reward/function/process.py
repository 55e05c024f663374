"""The service's side of the process that runs a reward function (child.py): start, batches, time limit, end.

The function runs in a process of its own, so that code that hangs, crashes or blocks does not stop the
service. A process that ends or takes too long is started again, and the batch is repeated item by item.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from fairlead.errors import EngineFailed, InternalError, ModelLoadError, Unavailable
from fairlead.local.process import describe_exit

logger = logging.getLogger(__name__)

_LOAD_SECONDS = 600.0
"""Time in which the module of the function is imported."""
_END_SECONDS = 5.0
"""Time in which a process ends after it has closed its output."""


class FunctionProcess:
    """One function in a process. Its methods block; `run` is called by one thread at a time."""

    def __init__(self, named: str, *, timeout_seconds: float) -> None:
        """Start the process and import the function.

        Args:
            named: `module:name`, or `file.py:name`.
            timeout_seconds: time limit of one call of the function.

        Raises:
            ModelLoadError: if the function cannot be imported or called.
        """
        self.failure: Future[None] = Future()
        """Fails with EngineFailed if the source has changed when the process is started again."""
        self._named = named
        self._timeout_seconds = timeout_seconds
        self._process, self.version = self._start()

    def run(self, items: Sequence[object]) -> list[float | Exception]:
        """Return the score of each item, or its error.

        Args:
            items: JSON values with `prompt` and `response`.

        Raises:
            Unavailable: if the function has changed, or cannot be imported any more.
        """
        if self.failure.done():
            raise Unavailable("the reward function has changed; the service starts again")
        try:
            self._write(self._process, {"items": list(items)})
            message = self._read(self._process, seconds=self._timeout_seconds)
        except _EndedError as ended:
            self._start_again()
            if len(items) == 1:
                logger.warning("reward.function %s: %s", self._named, ended)
                return [InternalError(f"reward.function {self._named}: {ended}")]
            return [result for item in items for result in self.run([item])]
        return [
            InternalError(f"reward.function {self._named} {each}") if isinstance(each, str) else float(each)
            for each in message["results"]
        ]

    def close(self) -> None:
        """End the process."""
        self._end(self._process)

    def _start_again(self) -> None:
        self._end(self._process)
        try:
            self._process, version = self._start()
            reason = "" if version == self.version else "its source has changed"
        except ModelLoadError as error:
            reason = str(error)
        if reason:
            with suppress(InvalidStateError):
                self.failure.set_exception(EngineFailed(f"reward.function {self._named}: {reason}"))
            raise Unavailable("the reward function has changed; the service starts again")

    def _start(self) -> tuple[subprocess.Popen[str], str]:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.reward.function.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                # Without the passwords and API keys of the run.
                env={name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")},
                # Ended as a group, with what the function has started.
                start_new_session=True,
            )
        except OSError as error:
            raise ModelLoadError(f"reward.function {self._named} cannot be started: {error}") from error
        try:
            self._write(process, {"function": self._named})
            message = self._read(process, seconds=_LOAD_SECONDS)
        except _EndedError as error:
            self._end(process)
            raise ModelLoadError(f"reward.function {self._named} cannot be imported: {error}") from error
        if "failed" in message:
            self._end(process)
            raise ModelLoadError(f"reward.function {self._named} cannot be used: {message['failed']}")
        return process, str(message["version"])

    def _write(self, process: subprocess.Popen[str], message: object) -> None:
        assert process.stdin is not None
        with suppress(OSError):  # it has ended, which reading reports
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _read(self, process: subprocess.Popen[str], *, seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        expired = threading.Event()

        def end() -> None:
            expired.set()
            _kill(process)

        limit = threading.Timer(seconds, end)
        limit.start()
        try:
            line = process.stdout.readline()
        finally:
            limit.cancel()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        try:
            code = process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # it has closed the pipe and runs on
            _kill(process)
            code = process.wait()
        if expired.is_set():
            raise _EndedError(
                f"did not return within {seconds:g} s (reward.function_timeout_seconds), and was ended"
            )
        raise _EndedError(f"its process has ended: {describe_exit(code)}")

    def _end(self, process: subprocess.Popen[str]) -> None:
        _kill(process)
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the process and those that it has started; also where only these are left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class _EndedError(Exception):
    """The process has ended; the text says why."""
