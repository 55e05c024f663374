"""A feedback service of one command: started for a run, with its store in the run's folder, and stopped.

It keeps its port when the same command continues, so that pages which people have open still work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
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
from fairlead.local.plan import base_environment, metrics_address
from fairlead.local.run_files import write_targets

_POLL_SECONDS = 0.1


class Service:
    """A feedback service that this command has started, and that may not be ready yet."""

    def __init__(self, config: RunConfig, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._config = config
        self._process = process
        self._log = log
        self._waiting = threading.Lock()
        self._ready = False
        self.address = address
        """`host:port`."""

    def connect(self) -> FeedbackClient:
        """Return a client, at first after the service has become ready.

        Raises:
            ProcessFailed: it ended, or was not ready in time; the message names its log.
            FairleadError: it needs an API key, as the client says.
        """
        with self._waiting:
            if not self._ready:
                self._wait_until_ready()
                self._ready = True
        return connect(self._config, self.address)

    def _wait_until_ready(self) -> None:
        seconds = self._config.local.ready_seconds
        deadline = time.monotonic() + seconds
        # A client would log that it waits.
        while is_free_port(*split_address(self.address, field="feedback.addresses")):
            if (code := self._process.poll()) is not None:
                raise ProcessFailed(f"the feedback service ended with exit code {code} (log: {self._log})")
            if time.monotonic() > deadline:
                raise ProcessFailed(
                    f"the feedback service was not ready within {seconds:g} s (log: {self._log})"
                )
            time.sleep(_POLL_SECONDS)
        with connect(self._config, self.address) as client:
            client.figures("progress", project=self._config.feedback.project.name)


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
def embedded(config: RunConfig) -> Iterator[Service]:
    """Run a feedback service during the block. It is not ready at first; `Service.connect` waits for that."""
    folder = config.folder
    address = _address(config)
    port = config.observe.metrics_port
    if port >= 0:
        # A configured port is that of the trainer, which may run at the same time.
        port = Ports().free("metrics of feedback", config.observe.metrics_host)
    changed = config.model_copy(
        update={
            "feedback": config.feedback.model_copy(
                update={"addresses": (address,), "bind": address, "replicas": 0}
            ),
            "observe": config.observe.model_copy(update={"metrics_port": port}),
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
    scheme = "https" if config.observe.metrics_tls else "http"
    targets = {"feedback": metrics_address(config, port)}
    write_targets(folder.feedback_targets, targets, run=config.name, scheme=scheme)
    try:
        yield Service(config, address, process, log)
    finally:
        write_targets(folder.feedback_targets, {}, run=config.name)
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
