"""Runs first in every child of a local run: binds its life to the supervisor's, then becomes the program.

Started by path, in an isolated interpreter (`python -I -S launch.py PARENT PROGRAM ...`), so that it costs
some 20 ms; imports nothing of fairlead. The supervisor cannot do this with `preexec_fn`: that is unsafe once
it has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def launch(parent: int, command: list[str]) -> None:
    """Asks the kernel to kill this process when its parent is gone, then replaces it by `command`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # The parent may have died before the line above took effect.
    if os.getppid() != parent:
        raise SystemExit("the supervisor is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    launch(int(sys.argv[1]), sys.argv[2:])
