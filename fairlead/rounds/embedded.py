"""A feedback service of one command: started for a run, with its store in the run's folder, and stopped.

It keeps its port when the same command continues, so that pages which people have open still work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairlead.config import RunConfig
from fairlead.config.saving import replace_text, save
from fairlead.errors import ProcessFailed
from fairlead.feedback_client import FeedbackClient
from fairlead.local import launch
from fairlead.local.addresses import Ports, is_free_port, join_address, split_address
from fairlead.local.plan import base_environment

_POLL_SECONDS = 0.1


def is_embedded(config: RunConfig) -> bool:
    """Return whether the run has no service: `feedback.addresses` is empty or has port 0."""
    addresses = config.feedback.addresses
    return not addresses or split_address(addresses[0], field="feedback.addresses")[1] == 0


def connect(config: RunConfig, address: str) -> FeedbackClient:
    """Return a client of the feedback service of a run; the API key is in FAIRLEAD_API_KEY."""
    return FeedbackClient(
        address,
        tls=config.tls if config.tls.on and config.feedback.tls != "off" else None,
        allow_insecure=config.keys.allow_insecure,
    )


@contextmanager
def embedded(config: RunConfig) -> Iterator[str]:
    """Run a feedback service during the block, and yield its address.

    Raises:
        ProcessFailed: it ended, or was not ready in time; the message names its log.
        FairleadError: it needs an API key, as the client says.
    """
    folder = config.folder
    address = _address(config)
    changed = config.model_copy(
        update={
            "feedback": config.feedback.model_copy(
                update={"addresses": (address,), "bind": address, "replicas": 0}
            ),
            "observe": config.observe.model_copy(update={"metrics_port": -1}),
        }
    )
    file, log = folder.root / "feedback_service.toml", folder.log("feedback")
    save(changed, file)
    log.parent.mkdir(parents=True, exist_ok=True)
    launched = [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid())]
    command = [sys.executable, "-m", "services.feedback", "--config", str(file.absolute())]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*launched, *command],
            env=base_environment(config),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C ends it only after this command has stopped using it.
        )
    try:
        _wait_until_ready(config, address, process, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(config.local.drain_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(config: RunConfig) -> str:
    """Return the address of the last time, or one with a free port."""
    kept = config.folder.root / "feedback_address"
    if kept.is_file():
        address = kept.read_text(encoding="utf-8").strip()
        if is_free_port(*split_address(address, field=str(kept))):
            return address
    addresses = config.feedback.addresses
    host = split_address(addresses[0], field="feedback.addresses")[0] if addresses else "127.0.0.1"
    address = join_address(host, Ports().free("feedback"))
    replace_text(kept, f"{address}\n")
    return address


def _wait_until_ready(config: RunConfig, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + config.local.ready_seconds
    while True:
        if process.poll() is not None:
            raise ProcessFailed(
                f"the feedback service ended with exit code {process.returncode} (log: {log})"
            )
        # A client would log that it waits.
        if not is_free_port(*split_address(address, field="feedback.addresses")):
            break
        if time.monotonic() > deadline:
            raise ProcessFailed(
                f"the feedback service was not ready within {config.local.ready_seconds:g} s (log: {log})"
            )
        time.sleep(_POLL_SECONDS)
    with connect(config, address) as client:
        client.figures("progress", project=config.feedback.project.name)
