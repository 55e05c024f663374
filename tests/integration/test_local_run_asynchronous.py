"""`fairlead ppo` with `max_staleness = 1` and real processes: the limit holds, no task is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.types import WeightVersion
from tests.integration.ppo_run import check, make, started
from trainer.ppo.task_records import read_journal


@pytest.mark.slow  # all six processes start
@pytest.mark.parametrize("samples", [1, 4])
def test_asynchronous_run_keeps_staleness_limit_and_counts_tasks_once(tmp_path: Path, samples: int):
    file = make(tmp_path, updates=6, max_staleness=1, num_samples=samples)
    with started(file) as run:
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        check(run.folder)
        ages = []
        for line in read_journal(run.folder.ledger):
            versions = [WeightVersion.parse(text) for text in line["versions"]]
            assert versions == sorted(versions)
            assert line.get("samples", 1) == samples
            ages.append(line["update"] - versions[0].update)
        assert set(ages) == {0, 1}
        assert len(ages) == 48  # nothing was dropped
        lines = [json.loads(line) for line in run.folder.metrics("ppo").read_text().splitlines()]
        # The first batch cannot be stale; fresh rollouts must match the recorded log-probs.
        assert lines[0]["staleness_max"] == 0
        assert lines[0]["mismatch_max"] < 1e-5
        assert max(line["staleness_max"] for line in lines) == 1
