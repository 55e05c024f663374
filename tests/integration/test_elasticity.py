"""Every model service and the worker are replaced during a run, without a shared weight folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.ppo_run import Started, check, make, started
from tests.service_process import Process, free_address

SERVICES = ("policy", "reward", "reference")
UPDATES = 300
"""More updates than a run does while a process starts."""


@contextlib.contextmanager
def joined(run: Started, name: str, module: str, **settings: str) -> Iterator[Process]:
    """Run one more process of an active run, with the environment of its first one but another address."""
    environment = psutil.Process(run.pids()[name]).environ()
    metrics = free_address()
    environment |= settings | {"FAIRLEAD_OBSERVE__METRICS_PORT": metrics.split(":")[1]}
    log = run.folder.logs / f"joined-{name}.log"
    command = [sys.executable, "-m", module, "--config", str(run.folder.config)]
    with log.open("wb") as output:
        popen = subprocess.Popen(command, cwd=run.folder.root.parents[1], env=environment, stderr=output)
    try:
        yield Process(popen, next(iter(settings.values()), ""), metrics, log)
    finally:
        popen.kill()
        popen.wait()


@pytest.mark.slow  # a dozen processes start
@pytest.mark.timeout(580)
def test_services_and_workers_join_and_leave_without_losing_tasks(tmp_path: Path) -> None:
    file = make(tmp_path, updates=UPDATES, max_staleness=1)
    addresses = {name: (free_address(), free_address()) for name in SERVICES}
    # A process that ends would be restarted at once; a minute is longer than the rest of the run.
    flags = ["--set", "local.backoff_seconds=60", "--set", "weights.transport=grpc"]
    for name, both in addresses.items():
        flags += ["--set", f"{name}.addresses={json.dumps(both)}"]
    with started(file, *flags) as run, contextlib.ExitStack() as stack:
        run.until(lambda: run.step() >= 2, seconds=300)
        joining = {
            name: stack.enter_context(
                joined(run, f"{name}-0", f"services.{name}", **{f"FAIRLEAD_{name.upper()}__BIND": both[1]})
            )
            for name, both in addresses.items()
        }
        joining["worker"] = stack.enter_context(joined(run, "rollout-worker-0", "services.rollout_worker"))
        for process in joining.values():
            run.until(lambda process=process: process.get("/readyz")[0] == 200, seconds=240)
        for name in (*(f"{name}-0" for name in SERVICES), "rollout-worker-0"):
            os.kill(run.pids()[name], signal.SIGTERM)
        left_at = run.step()
        code, output = run.finish(seconds=300)
        pages = {name: process.get("/metrics")[1] for name, process in joining.items()}
        stack.close()
        assert code == 0, output + run.log_tails()
        check(run.folder)
        assert left_at < UPDATES - 1, "the first processes left after the run had ended"
        for name in SERVICES:
            assert f'grpc_service="fairlead.v1.{name.capitalize()}Service"' in pages[name]
        assert 'fairlead_weights_fetched_bytes_total{source="' in pages["policy"]
