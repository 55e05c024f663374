"""Rank 0 gives orders to a second rank: a fault of one ends both. Their results: test_two_ranks.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import Ranks
from tests.unit.trainer.ppo.orders_world import configured

WORLD = "tests.unit.trainer.ppo.orders_world"
SETTINGS = {"lost_seconds": 300.0, "stall_seconds": 300.0}
"""Limits that a busy machine does not exceed by itself."""
SECONDS = 500.0
pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(
    ("order", "rank"),
    [
        ("learn", 1),
        *(
            pytest.param(order, rank, marks=pytest.mark.slow)
            for order in ("learn", "save", "copy", "commit", "publish", "load", "end")
            for rank in (0, 1)
            if (order, rank) != ("learn", 1)
        ),
    ],
)
def test_a_fault_of_one_rank_in_an_order_ends_all_with_its_reason_and_code(
    tmp_path: Path, order: str, rank: int
):
    file = configured(tmp_path)
    found = Ranks(2, f"{WORLD}:fail", file, order, rank, settings=SETTINGS).wait(seconds=SECONDS)
    own_code, _, own = found[rank]
    code, _, errors = found[1 - rank]
    expected = 1 if order == "load" else 2
    assert own_code == expected, own
    reason = "differs from the manifest" if order == "load" else f"NotFinite: a fault in {order}"
    assert reason in own.splitlines()[-1]
    if (order, rank) == ("end", 0):
        return  # the other rank had ended already
    assert code == expected, errors
    last = errors.splitlines()[-1]
    assert f"rank {rank} of 2" in last
    assert reason in last
