"""Several ranks train as one does: every architecture, more ranks; see test_two_ranks.py for two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ranks import Ranks
from tests.unit.trainer.distributed.sharded_cases import CASES, check_equal_to_one_rank, make_models
from trainer.distributed.micro_batches import plan
from trainer.distributed.sharding import owners

pytestmark = pytest.mark.timeout(600)  # processes that import torch, on a machine that may be busy
TARGET = "tests.unit.trainer.distributed.sharded"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_architecture_trains_on_several_ranks_as_on_one(models, size):
    results = Ranks(size, f"{TARGET}_cases:compare", str(models), [*range(len(CASES))]).results(seconds=600)[
        0
    ]
    assert len(results) == len(CASES)
    check_equal_to_one_rank(results)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_checkpoint_of_two_ranks_is_read_by_more(models, size):
    Ranks(2, f"{TARGET}_files:write_all", str(models)).results(seconds=250)
    differences = Ranks(size, f"{TARGET}_files:resume_all", str(models)).results(seconds=250)[0]
    assert len(differences) == 2
    assert max(differences) <= 1e-6


@pytest.mark.slow
def test_sigterm_of_one_rank_stops_all_at_the_same_step_and_they_continue_to_the_same_bits(tmp_path):
    first, second = Ranks(2, f"{TARGET}_files:interrupted", str(tmp_path)).results(seconds=400)
    assert first["code"] == second["code"] == 143
    assert "rank-00001.safetensors" in first["written"]
    assert first["same"]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 100),
    st.integers(1, 9),
)
def test_plan_gives_every_sequence_to_one_rank_and_every_rank_as_many_micro_batches(lengths, budget, ranks):
    found = plan(lengths, max_tokens=budget, ranks=ranks)
    assert sorted(index for own in found for group in own for index in group) == list(range(len(lengths)))
    assert len(found) == ranks
    assert len({len(own) for own in found}) == 1
    for own in found:
        for group in own:
            assert len(group) <= 1 or len(group) * max(lengths[index] for index in group) <= budget
    tokens = [sum(lengths[index] for group in own for index in group) for own in found]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_owners_have_about_as_many_bytes_each():
    sizes = [7, 100, 3, 3, 50, 20, 10, 90, 4, 4]
    found = owners(sizes, ranks=3)
    bytes_of = [
        sum(size for size, owner in zip(sizes, found, strict=True) if owner == rank) for rank in range(3)
    ]
    assert max(bytes_of) - min(bytes_of) <= max(sizes)
    assert owners(sizes, ranks=1) == [0] * len(sizes)
