"""Faults of a real Redis during a run: it dies, loses data, is full, is replaced; the audit stays clean.

Each fault is injected into a run of the trainer's own parts (`tests/bare_run.py`) with active workers.
SIGKILL by itself loses nothing, so lost writes are simulated by cutting the append-only file and by promoting
a lagging replica.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis

from fairlead.audit import report as audit_report
from fairlead.errors import Fenced, QueueUnavailable
from fairlead.local import valkey
from fairlead.local.valkey import ValkeyServer
from fairlead.transports.rollouts.redis_connection import Keys
from tests.bare_run import BATCH, RUN, BareRun, Workers
from tests.contract.queue_damage import damage
from trainer.ppo.incarnation import Incarnation


class Killed(BaseException):
    """Ends a trainer between two updates."""


def die() -> None:
    raise Killed


class Server:
    """A Valkey that can be killed, damaged and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.prepared: ValkeyServer = valkey.prepare(folder)
        self._running = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = self._running.enter_context(valkey.start(self.prepared))

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._running.close()

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.prepared.url, protocol=2)

    def close(self) -> None:
        self._running.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with closing(Server(tmp_path / "redis")) as started:
        yield started


def at(update: int, fault: Callable[[], None]) -> Callable[[int], None]:
    return lambda done: fault() if done == update else None


@pytest.mark.parametrize(("max_staleness", "samples"), [(0, 1), (2, 4)])
def test_redis_restart_with_append_only_file(
    tmp_path: Path, server: Server, max_staleness: int, samples: int
) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=max_staleness, num_samples=samples)

    def inject() -> None:
        server.kill()
        server.start()

    with Workers(run, dead=frozenset({13})):
        counts = run.train(at(5, inject))
        run.check(counts, dead=frozenset({13}))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.8])
def test_append_only_file_loses_its_end(tmp_path: Path, server: Server, kept: float) -> None:
    """As when the machine crashes before the last second was synced, but up to everything is lost."""
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=1)

    def inject() -> None:
        server.kill()
        [file] = (tmp_path / "redis" / "appendonlydir").glob("*.incr.aof")
        content = file.read_bytes()
        file.write_bytes(content[: int(kept * len(content))])
        server.start()

    with Workers(run):
        run.check(run.train(at(7, inject)), brought_back=True)


def test_lagging_replica_takes_over(tmp_path: Path, server: Server) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=1)
    copied = tmp_path / "replica"
    last_ids: list[bytes] = []

    def copy() -> None:
        """Let a replica copy everything up to here, then stop replication."""
        replica = valkey.prepare(copied)
        with valkey.start(replica), closing(redis.Redis.from_url(replica.url)) as client:
            with closing(server.client()) as primary:
                primary.config_set("repl-diskless-sync-delay", 0)
            client.config_set("masterauth", server.prepared.url.split(":")[2].partition("@")[0])
            client.replicaof("127.0.0.1", server.prepared.port)
            deadline = time.monotonic() + 30
            while (
                client.info("replication")["master_link_status"] != "up"
                or client.info("persistence")["aof_rewrite_in_progress"]
                or client.info("persistence")["aof_rewrite_scheduled"]
            ):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            client.replicaof("NO", "ONE")
            assert client.get(Keys(RUN).fence).startswith(b"1:")

    def promote() -> None:
        server.kill()
        shutil.rmtree(tmp_path / "redis" / "appendonlydir")
        shutil.copytree(copied / "appendonlydir", tmp_path / "redis" / "appendonlydir")
        server.start()
        with closing(server.client()) as client:
            last_ids.append(client.xinfo_stream(Keys(RUN).rollouts)["last-generated-id"])

    def inject(done: int) -> None:
        at(4, copy)(done)
        at(8, promote)(done)

    with Workers(run):
        counts = run.train(inject)
        report = run.check(counts, brought_back=True)
    # What was sent after the copy was lost, and sent again.
    assert report.resent > 0
    assert last_ids > [b"0-0"]


def test_full_redis_delays_workers_and_loses_nothing(tmp_path: Path, server: Server) -> None:
    """Workers keep finished results and store them when there is space."""
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=2)
    client = server.client()
    tries = 0

    def before_finish(task: int) -> None:
        nonlocal tries
        if task == 40:
            tries += 1
            if tries in (1, 6):
                client.config_set("maxmemory", int(tries == 1))

    with Workers(run, before_finish=before_finish) as workers:
        counts = run.train()
        run.check(counts)
    assert tries == 6
    assert workers.kept >= 5
    client.close()


def test_older_of_two_trainers_is_fenced_off(tmp_path: Path, server: Server) -> None:
    """The first is paused, a second one runs to the end, then the first continues and may not write."""
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=1)
    finished = []
    with Workers(run):
        with pytest.raises(Fenced):
            run.train(at(5, lambda: finished.append(run.train())))
        report = run.check(finished[0])
    assert [(one.number, one.resumed_from) for one in report.incarnations] == [(1, 0), (2, 3)]


def test_trainer_replaced_while_reading_checkpoint_changes_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url)
    begin, finished = Incarnation.begin, []

    def late(incarnation: Incarnation, update: int) -> None:
        monkeypatch.setattr(Incarnation, "begin", begin)
        finished.append(run.train())
        begin(incarnation, update)

    monkeypatch.setattr(Incarnation, "begin", late)
    with Workers(run):
        with pytest.raises(Fenced, match="incarnation 2 of the trainer has taken over from 1"):
            run.train()
        report = run.check(finished[0])
    assert [one.resumed_from for one in report.incarnations] == [None, 0]


def test_newest_checkpoint_damaged_after_its_outcomes_were_deleted(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=1)

    with Workers(run):
        with pytest.raises(Killed):
            run.train(at(7, die))
        assert not run.audited().findings
        newest = run.folder.checkpoints / "1-6" / "policy.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1])
        report = run.audited()
        assert report.is_clean
        assert report.checkpoint == "1-3"
        assert [finding.kind for finding in report.findings if finding.tasks == ()] == ["damaged"]
        # Tasks that only the damaged checkpoint settled are not in the queue: they will be sent again.
        counts = run.train()
        report = run.check(counts)
    assert "checkpoint 1-6 is damaged" in caplog.text
    assert report.incarnations[1].resumed_from == 3
    assert report.void == 4 * BATCH
    assert report.resent >= 3 * BATCH


def test_repeated_loss_of_everything(tmp_path: Path, server: Server) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=2, num_samples=3)
    client = server.client()
    with Workers(run):
        counts = run.train(lambda done: client.flushall() if done % 3 == 1 else None)
        run.check(counts)
    client.close()


def test_damage_of_every_entry(tmp_path: Path, server: Server) -> None:
    """Entries that wait for a worker, for the trainer and for a checkpoint."""
    run = BareRun(tmp_path / "run", server.prepared.url)
    client, keys, injected = server.client(), Keys(RUN), threading.Event()

    def wait_for_damage(task: int) -> None:
        if task >= 5 * BATCH and not injected.is_set():
            raise QueueUnavailable("entries are not damaged yet")

    def inject() -> None:
        for stream, field in ((keys.prompts, b"prompt"), (keys.rollouts, b"outcome")):
            for number, (entry, _) in enumerate(client.xrange(stream)):
                damage(client, stream, entry.decode(), field, cut=bool(number % 2))
        injected.set()

    with Workers(run, before_finish=wait_for_damage):
        counts = run.train(at(5, inject))
        report = run.check(counts)
    client.close()
    assert 1 <= report.discarded["damaged_prompt"] <= BATCH
    assert report.resent >= report.discarded["damaged_prompt"]


def test_audit_is_clean_at_every_moment_of_a_run(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit runs in a loop while trainers work, die and resume; a single reading is clean each time."""
    monkeypatch.setattr(audit_report, "_READINGS", 1)
    run = BareRun(tmp_path / "run", server.prepared.url, updates=24, max_staleness=1)
    ended, reports = threading.Event(), []

    def audit_repeatedly() -> None:
        while not ended.is_set():
            reports.append(run.audited())

    def wait_for_a_report(done: int) -> None:
        """Let an audit begin and end in every fourth update; the others pass while one reads."""
        before, deadline = len(reports), time.monotonic() + 60
        while done % 4 == 2 and len(reports) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.001)

    def step(last: int) -> Callable[[int], None]:
        def after(done: int) -> None:
            wait_for_a_report(done)
            if done == last:
                die()

        return after

    with Workers(run):
        with pytest.raises(Killed):
            run.train(at(1, die))
        watcher = threading.Thread(target=audit_repeatedly)
        watcher.start()
        try:
            for update in (8, 16):
                with pytest.raises(Killed):
                    run.train(step(update))
            counts = run.train(step(-1))
        finally:
            ended.set()
            watcher.join()
        run.check(counts)
    assert len([report for report in reports if not report.ended]) >= 10
    assert [report.findings for report in reports if not report.is_clean] == []
    assert sorted({report.updates for report in reports}) == [*dict.fromkeys(r.updates for r in reports)]
