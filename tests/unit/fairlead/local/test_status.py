"""`fairlead status` of a run that is running, finished, stopped, failed or crashed."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from fairlead.cli import status as cli
from fairlead.config import RunFolder
from fairlead.config.infrastructure import ObserveSection
from fairlead.local import status
from fairlead.local.live_queue import LiveQueue
from fairlead.local.process import ChildProcess, ProcessSpec
from fairlead.local.restart_policy import RunOutcome
from fairlead.local.run_files import read_record, write_record
from fairlead.local.status import RunStatus
from fairlead.metrics import TrainerMetrics, page

FIGURES = {
    "reward": 1.4,
    "kl": 2.0,
    "seconds": 2.0,
    "tokens_per_second": 3828.8,
    "staleness_mean": 0.5,
    "staleness_max": 1.0,
    "queue_waiting": 3.0,
    "queue_in_flight": 12.0,
    "queue_outcomes": 0.0,
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return the folder of a run whose trainer has reported update 12 of 24."""
    made = RunFolder(tmp_path / "runs" / "tiny")
    made.logs.mkdir(parents=True)
    made.config.write_text("[ppo]\nbatch_size = 64\nmini_batch_size = 64\n")
    now = {
        "stage": "ppo",
        "phase": "wait",
        "step": 12,
        "total": 24,
        "figures": FIGURES,
        "since": time.time() - 3,
        "waiting_for": "8 of 64 rollouts",
        "eta_seconds": 75.0,
    }
    made.progress.write_text(json.dumps(now))
    return made


def supervised(
    folder: RunFolder, *, outcome: RunOutcome | None = None, by: psutil.Process | None = None
) -> None:
    """Write the record of a supervisor: this process, or one that has ended."""
    processes = []
    for name in ("valkey", "trainer", "policy-0"):
        spec = ProcessSpec(name=name, command=(sys.executable,))
        processes.append(ChildProcess(spec, log=folder.log(name), environment={}))
    processes[0].mark_ready()
    write_record(folder.supervisor, processes, stage="ppo", started=time.time() - 60, outcome=outcome)
    if by is None:
        entry = json.loads(folder.supervisor.read_text())
        # The same pid, which another process has now.
        folder.supervisor.write_text(json.dumps(entry | {"pid_created": entry["pid_created"] - 100}))


def status_of(folder: RunFolder) -> RunStatus:
    return asyncio.run(status.read_status(folder))


def drawn(found: RunStatus, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    console.print(cli.render(found, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_status_of_a_running_run(folder: RunFolder):
    supervised(folder, by=psutil.Process(os.getpid()))
    found = status_of(folder)
    assert (found.state, found.stage, found.rollouts_per_second) == ("running", "ppo", 32.0)
    text = "\n".join(drawn(found, 120))
    assert " · running · ppo · update 12 of 24 · ETA 1:15" in text
    assert "wait for 8 of 64 rollouts · 0:03" in text
    assert "reward         1.4" in text
    assert "rollouts/s      32" in text
    assert "staleness 0.5 updates, at most 1" in text
    assert "queue     3 waiting, 12 in flight, 0 outcomes" in text
    assert [service.name for service in found.services] == ["valkey", "trainer", "policy-0"]


@contextmanager
def answering_trainer(folder: RunFolder) -> Iterator[TrainerMetrics]:
    """Serve the metrics of a trainer, and record its address."""
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry)
    port, stop = page.serve(ObserveSection(), ready=lambda: True, registry=registry)
    entry = json.loads(folder.supervisor.read_text())
    for process in entry["processes"]:
        if process["name"] == "trainer":
            process |= {"pid": os.getpid(), "metrics": f"127.0.0.1:{port}"}
    folder.supervisor.write_text(json.dumps(entry))
    try:
        yield metrics
    finally:
        stop()


def test_queue_is_that_of_now_and_not_of_the_last_update(folder: RunFolder):
    supervised(folder, by=psutil.Process(os.getpid()))
    sizes = {"waiting": 1_000.0, "in_flight": 7.0, "outcomes": 2.0}
    with answering_trainer(folder) as metrics:
        assert status_of(folder).queue is None, "not sampled yet"
        metrics.set_queue(sizes, memory_bytes=5e6, limit_bytes=0.0)
        found = status_of(folder)
        assert found.queue == LiveQueue(1_000, 7, 2, memory_bytes=5_000_000, limit_bytes=0)
        assert "queue     1,000 waiting, 7 in flight, 2 outcomes" in drawn(found, 120)
        metrics.set_queue(dict.fromkeys(sizes, math.nan), memory_bytes=math.nan, limit_bytes=math.nan)
        found = replace(status_of(folder), figures_seconds_ago=31.0)
        assert found.queue is None, "Redis does not answer"
        assert "queue     3 waiting, 12 in flight, 0 outcomes, as of 31 s ago" in drawn(found, 120)


def test_process_that_has_become_ready_is_asked_again(folder: RunFolder):
    supervised(folder, by=psutil.Process(os.getpid()))
    with answering_trainer(folder):
        entry = json.loads(folder.supervisor.read_text())
        trainer = next(process for process in entry["processes"] if process["name"] == "trainer")
        address = trainer["metrics"]
        trainer |= {"state": "starting", "http": "127.0.0.1:1"}  # nobody answers there
        folder.supervisor.write_text(json.dumps(entry))
        reader = status.StatusReader(folder, ask_seconds=3_600.0)
        assert [one.healthy for one in asyncio.run(reader.read()).services if one.pid] == [False]
        trainer |= {"state": "ready", "http": address}
        folder.supervisor.write_text(json.dumps(entry))
        assert [one.healthy for one in asyncio.run(reader.read()).services if one.pid] == [True]


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (RunOutcome(0, "done"), "finished", ""),
        (RunOutcome(130, "stopped by SIGINT"), "stopped", "stopped by SIGINT"),
        (RunOutcome(5, "a guard: length"), "stopped", "a guard: length"),
        (RunOutcome(2, "trainer: data.prompts: got ''"), "failed", "trainer: data.prompts: got ''"),
        (
            None,
            "crashed",
            "the supervisor ended without recording why: it was killed, or the machine crashed",
        ),
    ],
)
def test_state_of_an_ended_run_comes_from_the_supervisor_record(
    folder: RunFolder, outcome: RunOutcome | None, state: str, reason: str
):
    supervised(folder, outcome=outcome)
    found = status_of(folder)
    assert (found.state, found.reason) == (state, reason)
    assert reason in "\n".join(drawn(found, 160))
    assert {service.state for service in found.services} == {"gone"}
    assert all(service.pid is None for service in found.services)


@pytest.mark.parametrize(("left", "state"), [("ended", "finished"), ("ready", "running")])
def test_stage_has_ended_with_its_last_process(folder: RunFolder, left: str, state: str):
    """The process that supervised it may live on, as a quickstart does between its stages."""
    supervised(folder, outcome=RunOutcome(0, "done"), by=psutil.Process(os.getpid()))
    entry = json.loads(folder.supervisor.read_text())
    for process in entry["processes"]:
        process["state"] = "ended"
    entry["processes"][-1]["state"] = left
    folder.supervisor.write_text(json.dumps(entry))
    assert status_of(folder).state == state


def test_empty_folder_is_new(tmp_path: Path):
    found = status_of(RunFolder(tmp_path))
    assert found.state == "new"
    assert drawn(found, 200) == [f"{tmp_path} · new · no stage has reported progress yet"]


def test_state_without_a_supervisor_comes_from_progress(folder: RunFolder):
    assert status_of(folder).state == "running", "as in a cluster, where no supervisor exists"
    long_ago = time.time() - 3_600
    os.utime(folder.progress, (long_ago, long_ago))
    silent = status_of(folder)
    assert (silent.state, "reported nothing for 10 minutes" in silent.reason) == ("unknown", True)
    entry = json.loads(folder.progress.read_text())
    folder.progress.write_text(json.dumps(entry | {"phase": "done"}))
    folder.result("ppo").write_text(json.dumps({"updates": 24, "kl": 2.0}))
    found = status_of(folder)
    assert found.state == "finished"
    assert "ppo has finished: updates 24, kl 2" in drawn(found, 100)


def test_newest_error_of_all_logs_is_shown(folder: RunFolder):
    supervised(folder, by=psutil.Process(os.getpid()))
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())

    def log(process: str, *entries: dict[str, str]) -> None:
        folder.log(process).write_text("start\n" + "".join(json.dumps(entry) + "\n" for entry in entries))

    log("trainer", {"time": "2001-01-01T00:00:00.000Z", "level": "error", "message": "of another day"})
    assert status_of(folder).last_error == ""
    log(
        "policy-0",
        {"time": f"{clock}.100Z", "level": "error", "message": "weights damaged"},
        {"time": f"{clock}.200Z", "level": "info", "message": "all is well"},
    )
    assert status_of(folder).last_error == f"policy-0 at {clock}.100Z: weights damaged"


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_process_rows_do_not_wrap(folder: RunFolder, width: int):
    supervised(folder, by=psutil.Process(os.getpid()))
    lines = drawn(status_of(folder), width)
    assert max(map(len, lines)) <= width
    # Those that are not ready yet come first.
    assert [line.split()[0] for line in lines[-3:]] == ["trainer", "policy-0", "valkey"]
    assert "update 12 of 24" in "".join(lines[:2])


def test_json_contains_everything_that_is_shown(folder: RunFolder):
    supervised(folder, outcome=RunOutcome(1, "trainer died 20 times"))
    entry = json.loads(json.dumps(cli.as_dict(status_of(folder))))
    assert entry["state"] == "failed"
    assert entry["progress"]["figures"] == FIGURES
    assert [service["name"] for service in entry["services"]] == ["valkey", "trainer", "policy-0"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "ppo"}'])
def test_damaged_record_is_ignored(tmp_path: Path, text: str):
    path = tmp_path / "supervisor.json"
    assert read_record(path) is None
    path.write_text(text)
    assert read_record(path) is None
