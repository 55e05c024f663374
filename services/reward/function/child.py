"""The process that runs a reward function: imports it, and scores the batches that the service sends.

Run with `python -m services.reward.function.child`. Messages are lines of JSON on its standard streams; what
the function prints becomes standard error. It ends when the service does: its input is closed then.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from fairlead.errors import ModelLoadError
from fairlead.reward_function import RewardFunction

_INSTALLED = ("site-packages", "dist-packages")


def main() -> int:
    """Serve one function until the service ends; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the service finishes its requests
    lines = os.fdopen(os.dup(0), "r", encoding="utf-8")
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    named = str(json.loads(lines.readline())["function"])
    batches = queue.Queue[list[dict[str, Any]]]()
    threading.Thread(target=_read, args=(lines, batches), name="batches", daemon=True).start()
    # Bytecode is known by its source's size and second of change: it would survive a quick edit.
    sys.dont_write_bytecode = True
    try:
        function = RewardFunction(named)
    except ModelLoadError as error:
        traceback.print_exc()
        _send(output, {"failed": str(error)})
        return 1
    _send(output, {"version": digest(function.module, named)})
    while True:
        items = batches.get()
        prompts, responses = ([item[key] for item in items] for key in ("prompt", "response"))
        _send(output, {"results": function.scores(prompts, responses)})


def digest(module: ModuleType, named: str) -> str:
    """Return a version: a digest of the name of the function and of the source files that it consists of.

    These are the file of its module, and those of the modules that it has imported from the same folder or
    package; installed packages are not counted.
    """
    own = Path(inspect.getfile(module)).resolve()
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    is_package = "." in module.__name__ or hasattr(module, "__path__")
    root = Path(top.__file__).resolve().parent if is_package and top.__file__ else own.parent
    files = {own}
    for each in list(sys.modules.values()):
        file = Path(getattr(each, "__file__", None) or "")
        if file.suffix == ".py" and (found := file.resolve()).is_relative_to(root):
            inside = found.relative_to(root).parts
            if not any(part in _INSTALLED for part in inside) and (is_package or not _is_installed(root)):
                files.add(found)
    total = hashlib.sha256(named.rpartition(":")[2].encode())
    for file in sorted(files):
        total.update(str(file.relative_to(root)).encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]


def _is_installed(folder: Path) -> bool:
    return folder.name in _INSTALLED


def _read(lines: IO[str], batches: queue.Queue[list[dict[str, Any]]]) -> None:
    for line in lines:
        batches.put(json.loads(line)["items"])
    # The service has ended. The main thread may be in a function that never returns.
    os._exit(0)


def _send(output: IO[str], message: object) -> None:
    try:
        output.write(json.dumps(message) + "\n")
        output.flush()
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
