"""Several ranks load the rows that one rank would have there, and refuse what it refuses."""

from __future__ import annotations

import pytest

from tests.ranks import Ranks
from tests.unit.trainer.distributed import loading_world as world
from tests.unit.trainer.distributed.sharded_cases import CASES

pytestmark = pytest.mark.timeout(600)  # processes that import torch, on a machine that may be busy
TARGET = "tests.unit.trainer.distributed.loading_world:everything"
FAST = [0, 3, 5, 9]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    world.make(folder)
    return folder


@pytest.fixture(scope="module")
def two(models):
    """What each of two ranks found; they are started once for all tests."""
    return Ranks(2, TARGET, str(models), FAST).results(seconds=500)


def check_loads(rank: dict) -> None:
    for name in (*world.ROW_BY_ROW, *world.BY_FIRST):
        for dtype in ("float32", "bfloat16"):
            found = rank[dtype][name]
            assert found["differences"] == found["undivided"] == [], name
            assert found["aliases"][0] == found["aliases"][1], name
            assert (found["config"], found["training"]) == (True, False), name


def check_models(rank: dict, cases: list[int]) -> None:
    assert len(rank["actor_critics"]) == len(cases) + 1
    for one in rank["actor_critics"]:
        assert one["differences"] == [], one
        assert one["adapter"], one


def test_two_ranks_load_the_rows_of_one(two):
    for rank in two:
        check_loads(rank)


def test_only_models_that_cannot_be_read_by_rows_are_loaded_by_the_first_rank(two):
    for name in world.ROW_BY_ROW:
        assert two[0]["float32"][name]["first"] == 0, name
    for name in world.BY_FIRST:
        assert two[0]["float32"][name]["first"] == 1, name


def test_every_rank_refuses_what_one_refuses_with_its_message(two):
    for ours in (rank["refusals"] for rank in two):
        assert [one["model"] for one in ours] == list(world.REFUSED)
        for one in ours:
            assert one["ours"] == one["theirs"] != "", one


def test_policy_and_critic_of_two_ranks_have_the_rows_of_one(two):
    for rank in two:
        check_models(rank, FAST)


def test_folder_of_two_ranks_is_that_of_one(two):
    """Tied weights, experts under the names of their files, merged adapters, and adapters by themselves."""
    for one in two[0]["folders"]:
        assert one["differences"] == [], one
        assert "config.json" in one["texts"] or "adapter_config.json" in one["texts"]
    assert two[0]["folders"][0]["files"] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_more_ranks_load_the_rows_of_one(models, size):
    """Five experts: some ranks hold one, two or none."""
    numbers = [*range(len(CASES))]
    for rank in Ranks(size, TARGET, str(models), numbers).results(seconds=600):
        check_loads(rank)
        check_models(rank, numbers)
