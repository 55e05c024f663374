"""The place of a process among the ranks, from each way to start them, and the errors of wrong variables."""

from __future__ import annotations

import pytest

from fairlead.config.infrastructure import RanksSection
from fairlead.errors import ConfigError, exit_code
from trainer.distributed.place import Node, Place, node, place

RANK = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
PODS = RanksSection(nodes=4, per_node=2, address="trainer-0.trainer:29500")


def test_every_way_to_start_gives_the_place_of_this_process():
    assert place(RanksSection(), {}) == place(RanksSection(), {"JOB_COMPLETION_INDEX": "0"}) == Place()
    assert place(RanksSection(), {"RANK": "0", "WORLD_SIZE": "1"}) == Place()
    assert place(PODS, RANK) == Place(3, 8, 1, "host", 29500)
    assert place(PODS, RANK | {"RANK": "0", "LOCAL_RANK": "0"}) == Place(0, 8, 0, "host", 29500, True)
    # torchrun serves the store itself.
    agent = RANK | {"RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert not place(PODS, agent).serves_store
    assert node(RanksSection(per_node=4), {}) == Node(0, 1, 4)
    assert node(PODS, {"JOB_COMPLETION_INDEX": "2"}) == Node(2, 4, 2, "trainer-0.trainer", 29500)
    kubeflow = {"PET_NNODES": "3", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1"}
    kubeflow |= {"PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29400"}
    assert node(RanksSection(), kubeflow) == Node(1, 3, 4, "job-node-0-0.job", 29400)
    assert node(RanksSection(per_node=2), kubeflow | {"PET_NPROC_PER_NODE": "auto"}).per_node == 2
    # A pod with a single rank needs no launcher.
    pod = place(RanksSection(nodes=2, address="[::1]:29500"), {"JOB_COMPLETION_INDEX": "0"})
    assert pod == Place(0, 2, 0, "::1", 29500, serves_store=True)


@pytest.mark.parametrize(
    ("section", "environment", "field"),
    [
        (RanksSection(), {"RANK": "1"}, "WORLD_SIZE"),
        (RanksSection(), {"WORLD_SIZE": "2"}, "RANK"),
        (RanksSection(), RANK | {"RANK": "8"}, "RANK"),
        (RanksSection(), RANK | {"RANK": "-1"}, "RANK"),
        (RanksSection(), RANK | {"RANK": "1" * 5000}, "RANK"),
        (RanksSection(), RANK | {"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        (RanksSection(), RANK | {"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        (RanksSection(), RANK | {"LOCAL_RANK": "8"}, "LOCAL_RANK"),
        (RanksSection(), RANK | {"MASTER_ADDR": ""}, "MASTER_ADDR"),
        (RanksSection(), RANK | {"MASTER_PORT": "65536"}, "MASTER_PORT"),
        (RanksSection(), {name: RANK[name] for name in RANK if name != "MASTER_PORT"}, "MASTER_PORT"),
        (RanksSection(per_node=2), {}, "ranks.per_node"),
        (RanksSection(nodes=2, address="a:1"), {}, "ranks.nodes"),
        (RanksSection(nodes=2, address="a:1"), {"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX"),
        (RanksSection(nodes=2), {"JOB_COMPLETION_INDEX": "1"}, "ranks.address"),
        (RanksSection(nodes=2, address="host"), {"JOB_COMPLETION_INDEX": "1"}, "ranks.address"),
        (RanksSection(nodes=2, address="host:0"), {"JOB_COMPLETION_INDEX": "1"}, "ranks.address"),
        (RanksSection(), {"PET_NNODES": "2:4"}, "PET_NNODES"),
        (RanksSection(), {"PET_NNODES": "2", "PET_NODE_RANK": "x"}, "PET_NODE_RANK"),
    ],
)
def test_wrong_variables_are_refused(section: RanksSection, environment: dict[str, str], field: str):
    with pytest.raises(ConfigError) as caught:
        place(section, environment)
    assert caught.value.field == field
    assert exit_code(caught.value) == 2
