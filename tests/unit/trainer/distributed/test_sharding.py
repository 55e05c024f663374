"""Several ranks train as one does: the same gradients, steps, figures, checkpoints and published files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ranks import Ranks
from tests.unit.trainer.distributed import sharded_cases
from tests.unit.trainer.distributed.sharded_cases import CASES, FAST
from trainer.distributed.micro_batches import plan
from trainer.distributed.sharding import owners

pytestmark = pytest.mark.timeout(600)  # processes that import torch, on a machine that may be busy
TARGET = "tests.unit.trainer.distributed.sharded"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sharded_cases.make_models(folder)
    return folder


def check_equal_to_one_rank(results: list[dict[str, object]]) -> None:
    for one in results:
        bound = 1e-12 if one["double"] else 1e-5
        for what in ("gradient", "weights", "figures"):
            assert one[what] <= bound, one
        assert one["moved"] > 1e-4, one


@pytest.fixture(scope="module")
def two(models):
    """What each of two ranks found; they are started once for all tests."""
    return Ranks(2, f"{TARGET}_files:everything", str(models)).results(seconds=500)


def test_two_ranks_train_as_one(two):
    """Tied weights, recomputed blocks, adapters; the last mini-batch leaves a rank without work."""
    results = two[0]["training"]
    assert [one["case"] for one in results] == [CASES[number].name for number in FAST]
    check_equal_to_one_rank(results)


def test_checkpoint_of_two_ranks_is_read_by_two_to_the_bit_and_by_one(two):
    assert two[1]["checkpoints"]
    for one in two[0]["checkpoints"]:
        assert one["written"] == one["read"]
        assert one["by_one"] <= 1e-6
        assert one["groups"] == ["critic", "critic_optimizer", "policy", "policy_optimizer"]
        assert one["of_one"] <= 1e-6


def test_version_of_two_ranks_has_the_tensors_of_a_full_gather(two):
    for one in two[0]["versions"]:
        assert one["files"] == ["model-00001-00001.safetensors", "model-00002-00001.safetensors"]
        assert one["tensors"] > 7


def test_stages_of_two_ranks_equal_those_of_one(two):
    _, reward_model, dpo, kto = two[0]["stages"]
    for one in two[0]["stages"]:
        assert one["same_keys"]
        ours, theirs = one["train_loss"]
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert one["weights"] < 1e-3
    for one in (reward_model, dpo, kto):
        ours, theirs = one["accuracy"]
        assert ours == pytest.approx(theirs, abs=0.05)


def test_rank_holds_half_of_everything_and_a_frozen_base_once(two):
    for rank in two:
        whole, adapted = rank["held"]
        assert whole["weights"] < 0.53
        assert whole["moments"] < 0.53
        assert adapted["moments"] < 0.53
        # Of two equal models, one of which is nearly all of the other.
        assert adapted["weights"] < 0.35


def test_weight_that_is_not_finite_is_the_same_error_on_every_rank(two):
    assert "the critic has weights that are not finite" in two[0]["damaged"]
    assert two[0]["damaged"] == two[1]["damaged"]


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
