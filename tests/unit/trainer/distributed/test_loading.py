"""More than two ranks load the rows that one rank would have there; for two see test_two_ranks.py."""

from __future__ import annotations

import pytest

from tests.ranks import Ranks
from tests.unit.trainer.distributed import loading_world as world
from tests.unit.trainer.distributed.loading_world import check_loads, check_models
from tests.unit.trainer.distributed.sharded_cases import CASES

pytestmark = pytest.mark.timeout(600)  # processes that import torch, on a machine that may be busy
TARGET = "tests.unit.trainer.distributed.loading_world:everything"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    world.make(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_more_ranks_load_the_rows_of_one(models, size):
    """Five experts: some ranks hold one, two or none."""
    numbers = [*range(len(CASES))]
    for rank in Ranks(size, TARGET, str(models), numbers).results(seconds=600):
        check_loads(rank)
        check_models(rank, numbers)
