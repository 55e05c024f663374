"""The first program of every child of a local run: ties its life to the supervisor's, then runs the command.

The supervisor starts it by path in an isolated interpreter (`python -I -S launch.py PARENT PROGRAM ...`).
That takes about 20 ms; nothing of fairlead is imported. `preexec_fn` would be unsafe: the supervisor has
threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Ask the kernel to send this process a signal when its parent ends; exit if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    # The parent may have died before the line above took effect.
    if os.getppid() != parent:
        raise SystemExit("the supervisor has ended")


def launch(parent: int, command: list[str]) -> None:
    """Replace this process, which is killed when its parent ends, with `command`."""
    end_with_parent(parent, signal.SIGKILL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    launch(int(sys.argv[1]), sys.argv[2:])
