"""The place of this process among the ranks of its trainer, from the environment and `[ranks]`.

Ranks are static: a rank that dies is started again with the same number. Three ways to start are understood:

- one process for each rank, with `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`, as
  `launch.py` and torchrun do;
- one launcher for each node, which is numbered by `JOB_COMPLETION_INDEX` (a Job of Kubernetes) or by
  `PET_NODE_RANK` (a TrainJob of Kubeflow);
- neither: a single rank.

Does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.config.infrastructure import RanksSection
from fairlead.errors import ConfigError

_MAX_RANKS = 65_536
_PROCESS_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LISTENER = "FAIRLEAD_RANKS_LISTENER"
"""Variable of rank 0 on one machine: the descriptor of a socket that the launcher has bound to the port. No
other process can take the port meanwhile."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one process among the ranks of a trainer."""

    rank: int = 0
    """Its number; rank 0 leads."""
    size: int = 1
    """Number of ranks."""
    local_rank: int = 0
    """Its number on its node, which is also the number of its GPU."""
    host: str = ""
    """Host of rank 0; empty for a single rank."""
    port: int = 0
    """Port of rank 0; 0 for a single rank."""
    serves_store: bool = False
    """Whether this process serves the store over which the ranks find one another."""
    listener: int | None = None
    """Descriptor of a socket that is bound to the port already; None: the store binds one."""

    @property
    def address(self) -> str:
        """`host:port` of rank 0, for messages."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Node:
    """What a launcher starts on one node."""

    index: int
    """Number of the node."""
    nodes: int
    """Number of nodes."""
    per_node: int
    """Ranks on each node."""
    host: str = ""
    """Host of rank 0; empty if all ranks are on this node."""
    port: int = 0
    """Port of rank 0; 0 if all ranks are on this node."""

    @property
    def size(self) -> int:
        """Number of ranks on all nodes."""
        return self.nodes * self.per_node


def place(section: RanksSection, environment: Mapping[str, str] = os.environ) -> Place:
    """Return the place of this process.

    Raises:
        ConfigError: if a variable is missing or invalid, if the variables contradict one another or
            `[ranks]`, or if the section asks for several ranks and this process was started as a single one.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _own_place(environment)
    found = node(section, environment)
    if found.size == 1:
        return Place()
    if found.per_node > 1:
        raise ConfigError(
            "ranks.per_node",
            got=f"{found.per_node}, but this process was started as a single rank",
            allowed="1, or a start by `fairlead`, `python -m trainer.distributed.launch` or torchrun",
        )
    return Place(found.index, found.size, 0, found.host, found.port, serves_store=found.index == 0)


def node(section: RanksSection, environment: Mapping[str, str] = os.environ) -> Node:
    """Return what a launcher starts on this node.

    Raises:
        ConfigError: if a variable is invalid, if the index of the node is unknown or too large, or if the
            address of rank 0 is missing.
    """
    nodes, per_node = section.nodes, section.per_node
    if "PET_NNODES" in environment:
        nodes = _number(environment, "PET_NNODES", 1, _MAX_RANKS)
    if environment.get("PET_NPROC_PER_NODE", "").isdigit():
        # Otherwise `auto`, `gpu` or `cpu`: the configuration knows better.
        per_node = _number(environment, "PET_NPROC_PER_NODE", 1, _MAX_RANKS)
    if nodes == 1:
        return Node(0, 1, per_node)
    variable = next((name for name in ("PET_NODE_RANK", "JOB_COMPLETION_INDEX") if name in environment), "")
    if not variable:
        raise ConfigError(
            "ranks.nodes",
            got=f"{nodes}, but the number of this node is not known",
            allowed="1 on one machine; on several, JOB_COMPLETION_INDEX (set by a Job) or PET_NODE_RANK",
        )
    index = _number(environment, variable, 0, nodes - 1)
    host, port = _address(section, environment)
    return Node(index, nodes, per_node, host, port)


def _own_place(environment: Mapping[str, str]) -> Place:
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in environment]
    if missing:
        raise ConfigError(
            missing[0], got="no value", allowed="a number, together with " + ", ".join(_PROCESS_VARIABLES)
        )
    size = _number(environment, "WORLD_SIZE", 1, _MAX_RANKS)
    rank = _number(environment, "RANK", 0, size - 1)
    if size == 1:
        return Place()
    local_rank = _number(environment, "LOCAL_RANK", 0, size - 1) if "LOCAL_RANK" in environment else 0
    host = environment.get("MASTER_ADDR", "")
    if not host:
        raise ConfigError("MASTER_ADDR", got=host, allowed="the host of rank 0")
    port = _number(environment, "MASTER_PORT", 1, 65_535)
    # The agent of torchrun serves a store at this address for all of its ranks.
    served_by_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves_store = rank == 0 and not served_by_agent
    listener = _number(environment, LISTENER, 0, 2**20) if serves_store and LISTENER in environment else None
    return Place(rank, size, local_rank, host, port, serves_store=serves_store, listener=listener)


def _address(section: RanksSection, environment: Mapping[str, str]) -> tuple[str, int]:
    if "PET_MASTER_ADDR" in environment:
        return environment["PET_MASTER_ADDR"], _number(environment, "PET_MASTER_PORT", 1, 65_535)
    host, _, port = section.address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError(
            "ranks.address", got=section.address, allowed="host:port of rank 0, as ranks.nodes is above 1"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _number(environment: Mapping[str, str], name: str, lowest: int, highest: int) -> int:
    text = environment.get(name, "")
    allowed = f"a whole number from {lowest} to {highest}"
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(name, got=text, allowed=allowed)
    number = int(text)
    if not lowest <= number <= highest:
        raise ConfigError(name, got=number, allowed=allowed)
    return number
