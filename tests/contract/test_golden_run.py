"""Interrupted runs of earlier releases continue with this one: folder, checkpoint, entries of the queue.

`python -m tests.golden.make vN` writes a run for a new release; existing ones are never changed.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from fairlead.audit import audit
from fairlead.cli.main import app
from fairlead.local import valkey
from fairlead.transports.rollouts.redis_snapshot import take_snapshot
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from tests.golden.world import BATCH, NAME, UPDATES, RedisBroker, configured, restore
from tests.unit.trainer.ppo.ppo_world import World
from trainer.ppo.train import PpoTrainer

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASES = sorted(path.name for path in GOLDEN.glob("v*"))


@pytest.mark.parametrize("release", RELEASES)
def test_run_of_an_earlier_release_continues(release: str, tmp_path: Path) -> None:
    kept = GOLDEN / release
    shutil.copytree(kept / "run", tmp_path / "runs" / NAME)
    with valkey.running(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        restore(client, json.loads((kept / "queue.json").read_text()))
        config = configured(tmp_path / "runs", kept / "model", server.url)

        report, _ = audit(config.folder, read_queue=lambda: take_snapshot(config.queue, run=NAME))
        assert report.findings == ()
        assert (report.ended, report.checkpoint, report.queue_error) == (False, "1-4", "")
        assert (report.tasks, report.trained, report.dead, report.open) == (48, 39, 1, 8)
        assert report.queue is not None
        assert (report.queue["in_flight"], report.queue["outcomes"]) == (4, 12)
        command = ["audit", str(config.folder.root), "--redis-url", server.url]
        shown = CliRunner().invoke(app, command)
        assert (shown.exit_code, "0 waiting, 4 in flight, 12 outcomes" in shown.output) == (0, True)
        life = json.loads(CliRunner().invoke(app, [*command, "--task", "45", "--json"]).output)["life"]
        assert [event["what"] for event in life][1:] == [
            "now: sending 1.1, delivery 1, held by w",
            "now: open",
        ]

        world = World(
            kept / "model",
            config.weights_path,
            lambda answer: float(answer.count(7)),
            RedisBroker(config.queue),
        )
        with closing(RedisTrainerQueue.connect(config.queue, run=NAME)) as queue, world:
            result = PpoTrainer(config, queue=queue, store=world.store).run()
        assert (result["updates"], result["incarnations"]) == (UPDATES, 2)

        report, history = audit(config.folder, read_queue=lambda: take_snapshot(config.queue, run=NAME))
        assert report.is_clean, report.findings
        assert (report.ended, report.trained, report.dead) == (True, UPDATES * BATCH - 1, 1)
        assert report.void == BATCH
        # Every outcome that was in the queue was trained on.
        counted = [line for lines in history.counted.values() for line in lines if line.incarnation == 2]
        assert len(counted) == 2 * BATCH
        assert {line.task for line in counted if line.sending == (1, 1)} >= set(range(32, 44))


def test_golden_runs_are_small() -> None:
    assert RELEASES
    for release in RELEASES:
        assert sum(path.stat().st_size for path in (GOLDEN / release).rglob("*") if path.is_file()) < 300_000
