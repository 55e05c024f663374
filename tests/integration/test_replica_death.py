"""The death of a policy replica under load: its requests go to the other one, which refuses hardly any."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import replica_death


@pytest.mark.slow  # a run with two policies starts
@pytest.mark.timeout(580)
def test_death_of_a_policy_under_load_causes_few_refusals(tmp_path: Path) -> None:
    death = replica_death.measure(tmp_path)
    assert death.refusals <= 50
    assert death.refusals < death.calls / 10
