"""Measure the feedback service: from one command to the first ranked task, and how long a hand-in takes.

Start: `fairlead feedback serve --tasks` in an empty folder, until the first ranking is acknowledged. Hand-in:
for a minute, twenty labelers hand in five rankings a second at fixed times; latency counts from the time at
which a ranking was due, so that a slow service cannot slow down its callers. On SQLite, and on PostgreSQL
where it is installed.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.result import Result, Settings
from fairlead.errors import ProcessFailed
from fairlead.feedback_client import FeedbackClient
from fairlead.feedback_client.client import Task
from tests import postgres_server

LABELERS, RATE, SECONDS = 20, 5.0, 60.0
"""Labelers, rankings a second of all of them, and how long."""
START_SECONDS, P95_MILLISECONDS = 3.0, 150.0
"""Longest start, and longest 95th percentile of a hand-in."""
_LISTENS = re.compile(rb"feedback listens on http://([0-9.:]+)")
_WORDS = ["the", "parcel", "is", "late", "and", "nobody", "knows", "where", "it", "may", "be", "today"]


def run(settings: Settings) -> dict[str, Result]:
    """Return the time of a start, and percentiles of hand-ins on each database."""
    starts = [_start() for _ in range(settings.rounds(5))]
    what = f"longest start allowed; of {len(starts)}: {min(starts):.2f} to {max(starts):.2f} s"
    results = {"feedback_start": Result(statistics.median(starts), "s", START_SECONDS, what, at_most=1.0)}
    seconds = 2.0 if settings.quick else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        results |= _percentiles("sqlite", _hand_ins(str(Path(folder) / "feedback.db"), seconds))
    if reason := postgres_server.missing():
        print(f"no hand-ins on PostgreSQL: {reason}", file=sys.stderr)
        return results
    with postgres_server.running(durable=True) as (address, _):
        return results | _percentiles("postgres", _hand_ins(address, seconds))


def _start() -> float:
    """Return the seconds from the command to the first ranking."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in _tasks(10)))
        begun = time.perf_counter()
        with (
            _serving(folder, "--tasks", "answers.jsonl") as address,
            FeedbackClient(address, api_key="") as client,
        ):
            client.sign_in(handle="anna", kind="labeler")
            task = client.next()
            assert task is not None
            _rank(client, task)
            return time.perf_counter() - begun


def _hand_ins(store: str, seconds: float) -> list[float]:
    """Return the milliseconds of each hand-in."""
    wanted = int(seconds * RATE)
    with (
        tempfile.TemporaryDirectory() as name,
        _serving(Path(name), "--set", f"feedback.store={store}") as address,
    ):
        with FeedbackClient(address, api_key="") as lead:
            list(lead.add_tasks(_tasks(wanted + LABELERS)))
        own = threading.local()
        clients: list[FeedbackClient] = []

        def sign_in() -> None:
            own.client = FeedbackClient(address, api_key="")
            clients.append(own.client)
            own.client.sign_in(handle=f"labeler {threading.get_ident()}", kind="labeler")

        def work(number: int) -> float:
            client: FeedbackClient = own.client
            task = client.next()
            assert task is not None
            due = begin + number / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            _rank(client, task)
            return 1_000 * (time.perf_counter() - due)

        with ThreadPoolExecutor(LABELERS, initializer=sign_in) as pool:
            # Everybody has signed in before the first ranking is due.
            begin = time.perf_counter() + LABELERS / RATE
            found = list(pool.map(work, range(wanted)))
        for client in clients:
            client.close()
    return found


def _percentiles(name: str, milliseconds: list[float]) -> dict[str, Result]:
    p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99))
    count = f"{len(milliseconds)} hand-ins at {RATE:g} a second"
    return {
        f"feedback_{name}_p50": Result(float(p50), "ms", P95_MILLISECONDS, count),
        f"feedback_{name}_p95": Result(
            float(p95), "ms", P95_MILLISECONDS, f"longest p95 allowed; {count}", at_most=1.0
        ),
        f"feedback_{name}_p99": Result(float(p99), "ms", P95_MILLISECONDS, count),
    }


def _rank(client: FeedbackClient, task: Task) -> None:
    client.rank(task.assignment, {answer: place for place, answer in enumerate(task.answers, start=1)})


def _tasks(count: int) -> list[dict[str, object]]:
    """Return tasks of four answers of about 100 words."""
    text = " ".join(_WORDS * 8)
    return [
        {
            "prompt": f"question {number}: {text}",
            "responses": [f"{place} {number}: {text}" for place in range(4)],
        }
        for number in range(count)
    ]


@contextmanager
def _serving(folder: Path, *flags: str) -> Iterator[str]:
    """Start the service by its command in a folder, and yield the address that it logs."""
    command = [sys.executable, "-m", "fairlead.cli", "feedback", "serve", *flags]
    log = folder / "log"
    with log.open("wb") as output, subprocess.Popen(command, cwd=folder, stderr=output) as process:
        try:
            while (found := _LISTENS.search(log.read_bytes())) is None:
                if process.poll() is not None:
                    raise ProcessFailed(f"the feedback service did not start: {log.read_text()[-2_000:]}")
                time.sleep(0.005)
            yield found[1].decode()
        finally:
            process.terminate()
