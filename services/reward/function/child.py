"""The process that runs a reward function: imports it, and scores the batches that the service sends.

Run with `python -m services.reward.function.child`. Messages are lines of JSON on its standard streams; what
the function prints becomes standard error. It ends when the service does: its input is closed then.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import IO, Any

from fairlead.errors import ModelLoadError
from fairlead.reward_function import RewardFunction


def main() -> int:
    """Serve one function until the service ends; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the service finishes its requests
    lines = os.fdopen(os.dup(0), "r", encoding="utf-8")
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def detach() -> None:
        # A process that the function forks must neither answer nor keep the service waiting for the end of
        # this one.
        for stream in (lines, output):
            os.dup2(nothing, stream.fileno(), inheritable=False)

    os.register_at_fork(after_in_child=detach)
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
    _send(output, {"version": function.version})
    while True:
        items = batches.get()
        prompts, responses = ([item[key] for item in items] for key in ("prompt", "response"))
        _send(output, {"results": function.scores(prompts, responses)})


def _read(lines: IO[str], batches: queue.Queue[list[dict[str, Any]]]) -> None:
    for line in lines:
        batches.put(json.loads(line)["items"])
    # The service has ended. The main thread may be in a function that never returns, or have forked others.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _send(output: IO[str], message: object) -> None:
    try:
        output.write(json.dumps(message) + "\n")
        output.flush()
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
