"""Rank 0 gives orders to a second rank: both return to earlier models, and a fault of one ends both."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.config import load
from fairlead.config.saving import save
from tests.ranks import Ranks
from tests.tiny import tiny_causal_lm, tiny_reward_model

WORLD = "tests.unit.trainer.ppo.orders_world"
SETTINGS = {"lost_seconds": 300.0, "stall_seconds": 300.0}
"""Limits that a busy machine does not exceed by itself."""
SECONDS = 500.0
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def file(tmp_path: Path) -> str:
    tiny_causal_lm(tmp_path / "policy", seed=1)
    tiny_reward_model(tmp_path / "reward", seed=2)
    settings = {
        "policy.path": str(tmp_path / "policy"),
        "reward.path": str(tmp_path / "reward"),
        "runs": str(tmp_path / "runs"),
        "ppo.device": "cpu",
        "ppo.batch_size": 4,
        "ppo.mini_batch_size": 4,
        "ppo.learning_rate": 1e-3,
        "ppo.ema_decay": 0.5,
    }
    config = load(overrides=settings)
    save(config, tmp_path / "run.toml")
    return str(tmp_path / "run.toml")


def test_all_ranks_return_to_the_initial_models_and_to_a_checkpoint(file: str):
    (first, _) = Ranks(2, f"{WORLD}:reset", file, settings=SETTINGS).results(seconds=SECONDS)
    assert isinstance(first, list)
    initial, learnt, reset, again, later, loaded, figures, figures_again = first
    assert initial != learnt != later
    assert reset == initial
    assert again == learnt == loaded
    assert figures == figures_again


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
def test_a_fault_of_one_rank_in_an_order_ends_all_with_its_reason_and_code(file: str, order: str, rank: int):
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
