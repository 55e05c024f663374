"""The watchdog: waits of threads and coroutines, and when it ends a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fairlead import watchdog
from fairlead.config.infrastructure import ObserveSection
from fairlead.metrics import page as metrics_page
from fairlead.watchdog import Watchdog


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture
def dog(reasons: list[str]) -> Watchdog:
    return Watchdog(on_stall=reasons.append)


def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_longest_wait_of_each_kind_is_first(dog: Watchdog):
    entered, leave = threading.Event(), threading.Event()

    def thread() -> None:
        with dog.waiting("model", "a forward pass"):
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=thread)
    other.start()
    assert entered.wait(10)
    with dog.waiting("policy", "the policy's answer", task=17), dog.waiting("policy", task=18):
        shown = json.loads(dog.to_json())
        assert [(wait["what"], wait["task"]) for wait in shown] == [("model", None), ("policy", 17)]
        assert all(0 <= wait["seconds"] < 10 for wait in shown)
        assert str(dog.waits()[1]) == "the policy's answer for task 17"
    leave.set()
    other.join()
    assert dog.waits() == []


def test_wait_that_lasts_too_long_is_named_with_its_task(dog: Watchdog, reasons: list[str]):
    stop = dog.start(limit_seconds=0.2)
    with dog.waiting("tasks", "a task", limited=False), dog.waiting("reward", "a score", task=5):
        until(lambda: reasons)
    stop()
    assert "s for a score for task 5; the limit is 0.2 s" in reasons[0]


def test_waits_with_progress_or_without_a_limit_do_not_stall(dog: Watchdog, reasons: list[str]):
    stop = dog.start(limit_seconds=1.5)
    with dog.waiting("tasks", limited=False), dog.waiting("phase", "train") as phase:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            phase.restart()
            time.sleep(0.05)
    stop()
    assert reasons == []


def test_suspended_process_does_not_stall(dog: Watchdog, reasons: list[str], monkeypatch: pytest.MonkeyPatch):
    real, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])
    stop = dog.start(limit_seconds=60.0)
    with dog.waiting("reward", "a score") as wait:
        begun = wait.begun
        ahead[0] = 3_600.0  # as after SIGSTOP and SIGCONT
        deadline = real() + 10
        while wait.begun == begun:
            assert real() < deadline
        stop()
        assert reasons == []
        assert wait.begun - begun == pytest.approx(3_600, abs=5)


async def test_blocked_event_loop_is_noticed(dog: Watchdog, reasons: list[str]):
    stop = dog.start(limit_seconds=1.0)
    beat = asyncio.create_task(dog.beat())
    await asyncio.sleep(0)
    time.sleep(2)  # noqa: ASYNC251 - this is what must not happen in a coroutine
    beat.cancel()
    stop()
    assert any("the next turn of the event loop" in reason for reason in reasons)


def test_metric_and_page_report_the_waits_of_the_process():
    registry = CollectorRegistry()
    port, stop = metrics_page.serve(ObserveSection(), ready=lambda: True, registry=registry)
    try:
        with watchdog.PROCESS.waiting("queue", "the queue's answer to claim") as wait:
            wait.since -= 5
            page = generate_latest(registry).decode()
            [line] = [line for line in page.splitlines() if 'what="queue"' in line]
            assert float(line.split()[1]) == pytest.approx(5, abs=1)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/waiting", timeout=30) as answer:
                [shown] = [wait for wait in json.load(answer) if wait["what"] == "queue"]
        assert shown["detail"] == "the queue's answer to claim"
        assert 'fairlead_process_waiting_seconds{what="queue"} 0.0' in generate_latest(registry).decode()
    finally:
        stop()


def test_service_whose_forward_pass_hangs_exits_with_4_and_the_reason():
    program = """
        import asyncio, sys, time
        from prometheus_client import CollectorRegistry
        from fairlead import metrics
        from fairlead.config.serving import BatchingSection
        from services.runtime import process
        from services.batching.batcher import MicroBatcher

        async def run(config):
            batcher = MicroBatcher(
                lambda items: time.sleep(600), BatchingSection(),
                batcher_metrics=metrics.BatcherMetrics(CollectorRegistry()), field_name="items",
            )
            async with batcher:
                await batcher.submit(["x"], [1])

        sys.exit(process.main("reward", run, ["--set", "observe.stall_seconds=1"]))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 4, ended.stderr
    assert "for a forward pass of 1 sequences; the limit is 1 s" in ended.stderr.splitlines()[-1]
