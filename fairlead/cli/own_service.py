"""A service of one's own for the time of a command: started on a free port, ended with the command."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fairlead.cli.output import need

_POLL_SECONDS = 0.2
_STOP_SECONDS = 30.0


@contextmanager
def reward_service(model: str, *, ready_seconds: float) -> Iterator[str]:
    """Gives the address of a reward service with a model, once it answers.

    Args:
        model: folder or hub id.
        ready_seconds: how long loading may take.

    Raises:
        ModelLoadError: the service ended; what it said stands on standard error.
        DeadlineExceeded: it took too long.
    """
    from fairlead.errors import DeadlineExceeded, ModelLoadError
    from fairlead.local.addresses import LOOPBACK, Ports

    need("torch")
    address = f"{LOOPBACK}:{Ports().free('reward')}"
    settings = {
        "reward.path": model,
        "reward.bind": address,
        "observe.metrics_port": "-1",
        "observe.log_level": "WARNING",
    }
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    # A session of its own: Ctrl-C is the command's, which then ends the service.
    process = subprocess.Popen(
        [sys.executable, "-m", "services.reward", *flags], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + ready_seconds
        while not _answers(address):
            if process.poll() is not None:
                raise ModelLoadError(f"the reward service of {model!r} ended with code {process.returncode}")
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"the model {model!r} was not loaded within {ready_seconds:g} s")
            time.sleep(_POLL_SECONDS)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    import socket

    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False
