"""What each of two ranks does for `make test`: all that several ranks do, in one start of processes."""

from __future__ import annotations

from tests.unit.trainer import stopped_stages
from tests.unit.trainer.distributed import loading_world, sharded_files
from tests.unit.trainer.ppo import orders_world
from trainer.distributed.group import Group

LOADED = [0, 3, 5, 9]
"""Numbers of the cases whose policy and critic are loaded."""


def everything(group: Group, folder: str, run: str, whole: str, cut: str) -> dict[str, object]:
    """Load, train, write and read; carry out the orders of a run; stop SFT and continue; divide layers."""
    divided = Group(group._place, tensor_parallel=2, store=group._store, heartbeat=group._heartbeat)
    return {
        "loading": loading_world.everything(group, folder, LOADED),
        "sharding": sharded_files.everything(group, folder),
        "orders": orders_world.reset(group, run),
        "stopped": stopped_stages.stop_in_evaluation(group, "sft", whole, cut),
        "layers": sharded_files.trained_and_refused(divided, folder, [1]),
    }
