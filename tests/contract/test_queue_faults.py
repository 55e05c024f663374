"""What a real Redis does to a run: it dies, forgets, is full, another takes its place; the audit is clean.

Each fault strikes in the middle of a run of the trainer's own parts (`tests/bare_run.py`), with workers at
work. SIGKILL alone loses nothing, so lost writes are made by cutting the append-only file and by promoting a
replica that had fallen behind.
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


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_redis_is_killed_and_comes_back_with_its_file(
    tmp_path: Path, server: Server, max_staleness: int
) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=max_staleness)

    def strike() -> None:
        server.kill()
        server.start()

    with Workers(run, dead=frozenset({13})):
        counts = run.train(at(5, strike))
        run.check(counts, dead=frozenset({13}))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.8])
def test_the_end_of_the_append_only_file_is_lost(tmp_path: Path, server: Server, kept: float) -> None:
    """As when the machine goes down before the last second was synced; here up to all of it is gone."""
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=1)

    def strike() -> None:
        server.kill()
        [file] = (tmp_path / "redis" / "appendonlydir").glob("*.incr.aof")
        content = file.read_bytes()
        file.write_bytes(content[: int(kept * len(content))])
        server.start()

    with Workers(run):
        run.check(run.train(at(7, strike)), brought_back=True)


def test_a_replica_that_had_fallen_behind_takes_over(tmp_path: Path, server: Server) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=1)
    copied, behind = tmp_path / "replica", list[bytes]()

    def copy() -> None:
        """A replica gets everything up to here, and then no more."""
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
            behind.append(client.xinfo_stream(Keys(RUN).rollouts)["last-generated-id"])

    def strike(done: int) -> None:
        at(4, copy)(done)
        at(8, promote)(done)

    with Workers(run):
        counts = run.train(strike)
        report = run.check(counts, brought_back=True)
    # What was sent after the copy was forgotten, and sent again.
    assert report.resent > 0
    assert behind > [b"0-0"]


def test_a_full_redis_makes_workers_wait_and_loses_nothing(tmp_path: Path, server: Server) -> None:
    """Workers keep what they have made, and hand it in when there is room."""
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


def test_of_two_trainers_the_older_is_fenced_out(tmp_path: Path, server: Server) -> None:
    """The first is held up, a second runs to the end, the first goes on and may not write."""
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=1)
    finished = []
    with Workers(run):
        with pytest.raises(Fenced):
            run.train(at(5, lambda: finished.append(run.train())))
        report = run.check(finished[0])
    assert [(one.number, one.resumed_from) for one in report.incarnations] == [(1, 0), (2, 3)]


def test_a_trainer_that_was_overtaken_while_it_read_its_checkpoint_leaves_no_trace(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url)
    begin, finished = Incarnation.begin, []

    def late(tenure: Incarnation, update: int) -> None:
        monkeypatch.setattr(Incarnation, "begin", begin)
        finished.append(run.train())
        begin(tenure, update)

    monkeypatch.setattr(Incarnation, "begin", late)
    with Workers(run):
        with pytest.raises(Fenced, match="incarnation 2 of the trainer has taken over from 1"):
            run.train()
        report = run.check(finished[0])
    assert [one.resumed_from for one in report.incarnations] == [None, 0]


def test_the_newest_checkpoint_is_damaged_after_its_outcomes_were_deleted(
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
        # What the damaged one had trained is neither in the ledger nor in the queue: it will be sent again.
        counts = run.train()
        report = run.check(counts)
    assert "checkpoint 1-6 is damaged" in caplog.text
    assert report.incarnations[1].resumed_from == 3
    assert report.void == 4 * BATCH
    assert report.resent >= 3 * BATCH


def test_everything_is_lost_again_and_again(tmp_path: Path, server: Server) -> None:
    run = BareRun(tmp_path / "run", server.prepared.url, max_staleness=2)
    client = server.client()
    with Workers(run):
        counts = run.train(lambda done: client.flushall() if done % 3 == 1 else None)
        run.check(counts)
    client.close()


def test_everything_that_lies_in_the_queue_is_damaged(tmp_path: Path, server: Server) -> None:
    """What waits for a worker, what waits for the trainer, and what waits for a checkpoint."""
    run = BareRun(tmp_path / "run", server.prepared.url)
    client, keys, struck = server.client(), Keys(RUN), threading.Event()

    def falter(task: int) -> None:
        if task >= 5 * BATCH and not struck.is_set():
            raise QueueUnavailable("not before all of it is damaged")

    def strike() -> None:
        for stream, field in ((keys.prompts, b"prompt"), (keys.rollouts, b"outcome")):
            for number, (entry, _) in enumerate(client.xrange(stream)):
                damage(client, stream, entry.decode(), field, cut=bool(number % 2))
        struck.set()

    with Workers(run, before_finish=falter):
        counts = run.train(at(5, strike))
        report = run.check(counts)
    client.close()
    assert 1 <= report.discarded["damaged_prompt"] <= BATCH
    assert report.resent >= report.discarded["damaged_prompt"]


def test_the_audit_is_clean_at_every_moment_of_a_run(tmp_path: Path, server: Server) -> None:
    """It looks on, over and over, while trainers work, die and take over."""
    run = BareRun(tmp_path / "run", server.prepared.url, updates=24, max_staleness=1)
    over, reports = threading.Event(), []

    def look_on() -> None:
        while not over.is_set():
            reports.append(run.audited())

    with Workers(run):
        with pytest.raises(Killed):
            run.train(at(1, die))
        watcher = threading.Thread(target=look_on)
        watcher.start()
        try:
            for update in (8, 16):
                with pytest.raises(Killed):
                    run.train(at(update, die))
            counts = run.train()
        finally:
            over.set()
            watcher.join()
        run.check(counts)
    assert len(reports) > 5
    assert {report.ended for report in reports[:-1]} == {False}
    assert [report.findings for report in reports if not report.is_clean] == []
    assert sorted({report.updates for report in reports}) == [*dict.fromkeys(r.updates for r in reports)]
