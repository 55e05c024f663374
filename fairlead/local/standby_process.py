"""The program of a process on standby: import the modules that are named, wait for a command, become it.

The command comes as JSON on standard input (`standby.py`); the end of the input without one ends the process.
It then runs the module as `python -m` would, with the command's arguments, variables and log.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys


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


def main() -> None:
    """Import, wait, run."""
    for name in sys.argv[1:]:
        # The command itself reports what it cannot import.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    text = sys.stdin.buffer.read()
    if not text:
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _become(json.loads(text))


if __name__ == "__main__":
    main()
