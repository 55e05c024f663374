"""Every fault of every process and of every link in one run, in a fixed order; weights over gRPC."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.chaos import chaos
from tests.chaos.caller import RIGHT
from tests.chaos.faults import every_fault

PROCESSES = ("valkey", "trainer", "policy", "reward", "reference", "weights", "rollout-worker", "gateway")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_survives_faults_of_every_process_and_link(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    found = chaos.run(tmp_path, every_fault, seed=1, updates=360, max_staleness=0, weights="grpc")
    assert found.problems == []
    assert (found.lost, found.duplicated, found.dead, found.max_staleness_seen) == (0, 0, 0, 0)
    assert found.recovery_seconds.keys() == set(PROCESSES)
    assert found.scored[RIGHT] > 0
    log = caplog.text
    for process in PROCESSES:
        name = process if process in ("valkey", "trainer") else f"{process}-0"
        assert f"{name} has not answered for" in log
