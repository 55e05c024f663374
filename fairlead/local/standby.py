"""Python processes that have imported the model libraries and wait for a command.

Importing torch and transformers takes several seconds of CPU time in every process. A caller that knows which
stage comes next, such as the quickstart, prepares processes while the current stage leaves a core free; the
supervisor then hands each a command instead of starting a new interpreter. They import one after the other,
on the cores that the current stage leaves. A process that has died is simply not used. Nothing is forked:
each is an interpreter of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from fairlead.local import launch
from fairlead.local.cores import usable_cores
from fairlead.local.run_files import MARK

_POLL_SECONDS = 0.05
_MODULE = "fairlead.local.standby_process"
IMPORTS = ("fairlead.nn.loading", "transformers.models.auto.modeling_auto", "transformers.modeling_utils")
"""Modules that every trainer and model service imports; they cost most of the time of a start."""


class StandbyChild:
    """A process that was handed a command, with the interface of `asyncio.subprocess.Process`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The pid, which is that of its process group too."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the number of a signal; None while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait for its end and return `returncode`."""
        while (code := self._process.poll()) is None:  # noqa: ASYNC110 (it was started outside of the loop)
            await asyncio.sleep(_POLL_SECONDS)
        return code


class Standby:
    """Processes that wait for a command; those that got none end with the block."""

    def __init__(self, imports: Sequence[str] = IMPORTS) -> None:
        """
        Args:
            imports: modules that each process imports before it waits.
        """
        self._imports = tuple(imports)
        self._locks: tempfile.TemporaryDirectory[str] | None = None
        self._num_started = 0
        self._waiting: list[tuple[subprocess.Popen[bytes], dict[str, str]]] = []

    def __enter__(self) -> Standby:
        """Return itself; nothing is started yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes that wait."""
        self.clear()
        if self._locks is not None:
            self._locks.cleanup()
            self._locks = None

    def prepare(self, count: int, environment: Mapping[str, str]) -> None:
        """Start processes until `count` with this environment wait.

        Args:
            count: number of processes.
            environment: all their variables. A command may add variables named `FAIRLEAD_*` and change
                `CUDA_VISIBLE_DEVICES`; libraries read others when they are imported.
        """
        known = sum(entry[1] == environment and entry[0].poll() is None for entry in self._waiting)
        for _ in range(count - known):
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", launch.__file__, str(os.getpid())),
                    *(sys.executable, "-m", _MODULE, self._next_lock(), *self._imports),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )
            self._waiting.append((process, dict(environment)))

    def _next_lock(self) -> str:
        """Return a file that a process locks while it imports: one for each core but one."""
        if self._locks is None:
            self._locks = tempfile.TemporaryDirectory(prefix="fairlead-standby-")
        self._num_started += 1
        file = Path(self._locks.name) / str(self._num_started % max(1, usable_cores() - 1))
        file.touch()
        return str(file)

    def take(
        self, command: Sequence[str], environment: Mapping[str, str], *, log: Path
    ) -> StandbyChild | None:
        """Hand a command to a waiting process; None if there is none that could run it.

        Args:
            command: this interpreter, `-m`, a module and its arguments.
            environment: all variables of the command.
            log: file to which standard output and error are appended.
        """
        if tuple(command[:2]) != (sys.executable, "-m"):
            return None
        wanted = _read_at_import(environment)
        for entry in list(self._waiting):
            process, started_with = entry
            if _read_at_import(started_with) != wanted:
                continue
            self._waiting.remove(entry)
            if _hand_over(process, command[2:], environment, log):
                return StandbyChild(process)
            _end(process)
        return None

    def clear(self) -> None:
        """End the processes that wait."""
        while self._waiting:
            _end(self._waiting.pop()[0])


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process must have had from its start: others see the mark in /proc."""
    return {
        name: value
        for name, value in environment.items()
        if name == MARK or not (name.startswith("FAIRLEAD_") or name == "CUDA_VISIBLE_DEVICES")
    }


def _hand_over(
    process: subprocess.Popen[bytes], arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> bool:
    """Write the command to a process; return whether it was alive to read it."""
    if process.poll() is not None:
        return False
    assert process.stdin is not None
    order = {"arguments": list(arguments), "environment": dict(environment), "log": str(log.absolute())}
    try:
        process.stdin.write(json.dumps(order).encode())
        process.stdin.close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    process.wait()
