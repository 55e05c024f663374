"""Ranks that divide layers train as one rank does, and write and read the same files."""

from __future__ import annotations

import pytest

from tests.ranks import Ranks
from tests.unit.trainer.distributed import sharded_cases
from tests.unit.trainer.distributed.sharded_cases import CASES, check_equal_to_one_rank
from trainer.distributed.group import Group
from trainer.distributed.place import Place

pytestmark = pytest.mark.timeout(600)  # processes that import torch, on a machine that may be busy
TARGET = "tests.unit.trainer.distributed.sharded_files"
WITH_PLAN = [number for number, case in enumerate(CASES) if case.model != "gpt2" and not case.compiled]
"""transformers has no plan for GPT-2, and torch compiles no divided matrices."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sharded_cases.make_models(folder)
    return folder


def divided(size: int, function: str, *arguments: object) -> list:
    ranks = Ranks(size, f"{TARGET}:{function}", *arguments, settings={"tensor_parallel": 2})
    return ranks.results(seconds=500)


def test_figures_of_the_ranks_of_a_share_count_once():
    found = [Group(Place(rank=rank, size=6), tensor_parallel=2) for rank in range(6)]
    assert [group.share for group in found] == [0, 0, 1, 1, 2, 2]
    assert [group.counts for group in found] == [True, False] * 3
    assert {group.num_shares for group in found} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_divide_layers_write_and_read_the_files_of_one(models, size, tmp_path):
    """Checkpoints of slices of rows and columns, versions, and models of SFT and reward-model training; four
    ranks divide by FSDP, too.
    """
    for name in ("tiny", "tiny-tied", "llama"):
        (tmp_path / name).symlink_to(models / name)
    found = divided(size, "files_of_divided_layers", str(tmp_path))
    for rank in found:
        whole, adapted = rank["held"]
        assert whole["weights"] < 1.03 / size
        assert whole["moments"] < 1.03 / size
        assert adapted["weights"] < 0.7 / size  # the frozen base once, for policy and critic
    checkpoints, versions = found[0]["files"]["checkpoints"], found[0]["files"]["versions"]
    assert len(checkpoints) == 2
    assert len(versions) == 3
    for one in checkpoints:
        assert one["written"] == one["read"]
        assert one["by_one"] <= 1e-6
        assert one["of_one"] <= 1e-6
    for one in found[0]["stages"]:
        ours, theirs = one["train_loss"]
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert one["weights"] < 1e-3
    for one in versions:
        assert one["files"] == [f"model-{rank + 1:05d}-00001.safetensors" for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_architecture_with_a_plan_trains_divided_as_on_one_rank(models, size):
    found = divided(size, "trained_and_refused", str(models), WITH_PLAN)[0]["training"]
    assert len(found) == len(WITH_PLAN)
    check_equal_to_one_rank(found)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # starts nine processes
def test_checkpoint_of_divided_layers_is_read_by_ranks_that_divide_them_otherwise(models, tmp_path):
    for name in ("tiny-tied", "llama"):
        (tmp_path / name).symlink_to(models / name)
    divided(2, "write_divided", str(tmp_path))
    three = Ranks(3, f"{TARGET}:resume_divided", str(tmp_path)).results(seconds=500)
    four = divided(4, "resume_divided", str(tmp_path))
    assert max(*three[0], *four[0]) <= 1e-6
