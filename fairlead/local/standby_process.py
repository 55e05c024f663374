"""The program of a process on standby: import modules in its turn, wait for a command, become it. With the
command its turn has come.

The command comes as JSON on standard input (`standby.py`); the end of the input without one ends the process.
It then runs the module as `python -m` would, with the command's arguments, variables and log.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import sys
from pathlib import Path
from typing import IO

_POLL_SECONDS = 0.05


def _become(order: dict[str, object]) -> None:
    """Take over variables and log of the command, and run its module as `__main__`."""
    environment = {str(name): str(value) for name, value in dict(order["environment"]).items()}  # type: ignore[call-overload]
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    module, *arguments = [str(argument) for argument in list(order["arguments"])]  # type: ignore[call-overload]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _take_turn(lock: Path) -> IO[str] | None:
    """Lock a file, which closing it unlocks; None if a command, or the end of the input, comes first."""
    try:
        file = lock.open()
    except OSError:  # Nobody prepares any more.
        return None
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if select.select([sys.stdin], [], [], _POLL_SECONDS)[0]:
                file.close()
                return None


def main() -> None:
    """Import, wait, run."""
    lock, *imports = sys.argv[1:]
    turn = _take_turn(Path(lock))
    # Collections while millions of lasting objects are made find nothing, and take a tenth of the time.
    gc.disable()
    for name in imports:
        # The command itself reports what it cannot import.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()
    gc.enable()
    if turn is not None:
        turn.close()
    text = sys.stdin.buffer.read()
    if not text:
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _become(json.loads(text))


if __name__ == "__main__":
    main()
