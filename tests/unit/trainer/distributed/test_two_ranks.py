"""Two ranks load, train, write and read as one does, with layers divided between them and without.

They are started once for all tests. More ranks and every architecture: test_loading.py, test_sharding.py and
test_tensor_parallel.py.
"""

from __future__ import annotations

import pytest

from tests.ranks import Ranks
from tests.unit.trainer.distributed import loading_world as world
from tests.unit.trainer.distributed.loading_world import check_loads, check_models
from tests.unit.trainer.distributed.sharded_cases import CASES, FAST, check_equal_to_one_rank
from tests.unit.trainer.distributed.two_ranks import LOADED
from tests.unit.trainer.ppo.orders_world import configured
from tests.unit.trainer.stopped_stages import check_stopped, write_runs

pytestmark = pytest.mark.timeout(600)  # processes that import torch, on a machine that may be busy


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of two runs of SFT."""
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture(scope="module")
def two(tmp_path_factory, stopped):
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("models")
    world.make(folder)
    target = "tests.unit.trainer.distributed.two_ranks:everything"
    run = configured(tmp_path_factory.mktemp("run"))
    return Ranks(2, target, str(folder), run, *write_runs("sft", stopped)).results(seconds=550)


@pytest.fixture
def loading(two):
    return [rank["loading"] for rank in two]


@pytest.fixture
def sharding(two):
    return [rank["sharding"] for rank in two]


@pytest.fixture
def layers(two):
    return [rank["layers"] for rank in two]


def test_two_ranks_load_the_rows_of_one(loading):
    for rank in loading:
        check_loads(rank)


def test_only_models_that_cannot_be_read_by_rows_are_loaded_by_the_first_rank(loading):
    for name in world.ROW_BY_ROW:
        assert loading[0]["float32"][name]["first"] == 0, name
    for name in world.BY_FIRST:
        assert loading[0]["float32"][name]["first"] == 1, name


def test_every_rank_refuses_what_one_refuses_with_its_message(loading):
    for ours in (rank["refusals"] for rank in loading):
        assert [one["model"] for one in ours] == list(world.REFUSED)
        for one in ours:
            assert one["ours"] == one["theirs"] != "", one


def test_policy_and_critic_of_two_ranks_have_the_rows_of_one(loading):
    for rank in loading:
        check_models(rank, LOADED)


def test_folder_of_two_ranks_is_that_of_one(loading):
    """Tied weights, experts under the names of their files, merged adapters, and adapters by themselves."""
    for one in loading[0]["folders"]:
        assert one["differences"] == [], one
        assert "config.json" in one["texts"] or "adapter_config.json" in one["texts"]
    assert loading[0]["folders"][0]["files"] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_two_ranks_train_as_one(sharding):
    """Tied weights, recomputed blocks, adapters; the last mini-batch leaves a rank without work."""
    results = sharding[0]["training"]
    assert [one["case"] for one in results] == [CASES[number].name for number in FAST]
    check_equal_to_one_rank(results)


def test_checkpoint_of_two_ranks_is_read_by_two_to_the_bit_and_by_one(sharding):
    assert sharding[1]["checkpoints"]
    for one in sharding[0]["checkpoints"]:
        assert one["written"] == one["read"]
        assert one["by_one"] <= 1e-6
        assert one["groups"] == ["critic", "critic_optimizer", "policy", "policy_optimizer"]
        assert one["of_one"] <= 1e-6


def test_version_of_two_ranks_has_the_tensors_of_a_full_gather(sharding):
    for one in sharding[0]["versions"]:
        assert one["files"] == ["model-00001-00001.safetensors", "model-00002-00001.safetensors"]
        assert one["tensors"] > 7


def test_stages_of_two_ranks_equal_those_of_one(sharding):
    _, reward_model, dpo, kto = sharding[0]["stages"]
    for one in sharding[0]["stages"]:
        assert one["same_keys"]
        ours, theirs = one["train_loss"]
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert one["weights"] < 1e-3
    for one in (reward_model, dpo, kto):
        ours, theirs = one["accuracy"]
        assert ours == pytest.approx(theirs, abs=0.05)


def test_rank_holds_half_of_everything_and_a_frozen_base_once(sharding):
    for rank in sharding:
        whole, adapted = rank["held"]
        assert whole["weights"] < 0.53
        assert whole["moments"] < 0.53
        assert adapted["moments"] < 0.53
        # Of two equal models, one of which is nearly all of the other.
        assert adapted["weights"] < 0.35


def test_weight_that_is_not_finite_is_the_same_error_on_every_rank(sharding):
    assert "the critic has weights that are not finite" in sharding[0]["damaged"]
    assert sharding[0]["damaged"] == sharding[1]["damaged"]


def test_two_ranks_that_divide_layers_train_as_one_and_others_are_refused_by_name(layers):
    check_equal_to_one_rank(layers[0]["training"])
    ours, theirs = layers[0]["norms"]
    assert ours == pytest.approx(theirs, rel=1e-5)  # what every rank holds whole counts once
    for one in layers:
        assert "GPT2LMHeadModel does not exist" in one["refused"]
        assert one["refused"].startswith("ranks.tensor_parallel")
        assert one["loaded"]
        assert one["logits"] == 30  # of a vocabulary of 60
        assert one["one_token"] == [0, 0]


def test_all_ranks_return_to_the_initial_models_and_to_a_checkpoint(two):
    initial, learnt, reset, again, later, loaded, figures, figures_again = two[0]["orders"]
    assert initial != learnt != later
    assert reset == initial
    assert again == learnt == loaded
    assert figures == figures_again


def test_ranks_stop_together_during_an_evaluation_and_continue_to_the_same_bits(two, stopped):
    check_stopped([rank["stopped"] for rank in two], stopped)
