"""What the ranks of `test_orders.py` do: all orders of rank 0, with a fault of one rank in one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from fairlead.config import load
from fairlead.config.base import ComputeSection
from fairlead.config.saving import save as save_config
from fairlead.errors import NotFinite
from fairlead.nn.loading import load_causal_lm
from fairlead.types import WeightVersion
from tests.tiny import tiny_causal_lm, tiny_reward_model
from tests.unit.trainer.ppo.ppo_batches import rollouts
from trainer.checkpoint import CheckpointStore
from trainer.distributed.group import Group
from trainer.distributed.sharding import local
from trainer.ppo import learner
from trainer.ppo.orders import Leader, follow

VERSION = WeightVersion(1, 1)


def configured(folder: Path) -> str:
    """Return the file of a run with tiny models."""
    tiny_causal_lm(folder / "policy", seed=1)
    tiny_reward_model(folder / "reward", seed=2)
    settings = {
        "policy.path": str(folder / "policy"),
        "reward.path": str(folder / "reward"),
        "runs": str(folder / "runs"),
        "ppo.device": "cpu",
        "ppo.batch_size": 4,
        "ppo.mini_batch_size": 4,
        "ppo.learning_rate": 1e-3,
        "ppo.ema_decay": 0.5,
    }
    save_config(load(overrides=settings), folder / "run.toml")
    return str(folder / "run.toml")


def reset(group: Group, file: str) -> list[object]:
    """Learn, begin to save, return to the initial models, learn twice, commit, and return to the checkpoint;
    write the last policy and that of the checkpoint.

    Returns:
        On rank 0 the digests of its part after each of them, and the figures of the first two updates.
    """
    config = load(Path(file))
    if not group.is_first:
        follow(config, group)
        return []
    leader = Leader(config, learner.initial_tokenizer(config), group)
    store = CheckpointStore(config.folder.checkpoints)
    found: list[object] = [_digest(leader)]
    figures = []
    for number in range(3):
        figures.append(leader.learn(rollouts(), update=0, on_phase=lambda phase: None))
        found.append(_digest(leader))
        if number == 0:
            leader.begin_save(store, VERSION, leader.learner.state())
            leader.load(None)
            found.append(_digest(leader))
    assert store.versions() == []
    leader.commit()
    assert store.versions() == [VERSION]
    assert json.loads((store.root / str(VERSION) / "manifest.json").read_text())["schema"] == 2
    leader.save_model(config.folder.policy_model)
    checkpoint = store.load(VERSION)
    leader.save_model(config.folder.best_policy_model, checkpoint)
    leader.save_average(config.folder.average_policy_model)
    found += [_digest(leader), *figures[:2]]
    leader.stop()
    assert _is_written(checkpoint.tensors["policy_ema"], config.folder.average_policy_model)
    best = checkpoint.tensors["policy"]
    assert _is_written(best, config.folder.best_policy_model)
    assert not _is_written(best, config.folder.policy_model)
    return found


def _is_written(tensors: Mapping[str, Tensor], folder: Path) -> bool:
    """Whether a model folder has these tensors."""
    policy = load_causal_lm(str(folder), ComputeSection(device="cpu")).state_dict()
    return all(torch.equal(tensors[name], policy[name]) for name in tensors)


def fail(group: Group, file: str, order: str, rank: int) -> None:
    """Carry out every order; one rank fails in one of them."""
    config = load(Path(file))
    if not group.is_first:
        if group.rank == rank:
            _fail_in(group, order)
        follow(config, group)
    else:
        leader = Leader(config, learner.initial_tokenizer(config), group)
        store = CheckpointStore(config.folder.checkpoints)
        steps = {
            "learn": lambda: leader.learn(rollouts(), update=0, on_phase=lambda phase: None),
            "save": lambda: leader.save(store, VERSION, leader.learner.state()),
            "copy": lambda: leader.begin_save(store, WeightVersion(1, 2), leader.learner.state()),
            "commit": leader.commit,
            "publish": lambda: leader.write_shards(_new(config.folder.root / "version")),
            "load": lambda: leader.load(store.load(VERSION, verify=False)),
        }
        for name, step in steps.items():
            if name == "load" and order == "load":
                path = config.folder.checkpoints / str(VERSION) / f"rank-0000{rank}.safetensors"
                path.write_bytes(path.read_bytes()[:-1])
            if name == order and rank == 0 and order != "load":
                _fail_in(group, order)
            step()
        leader.stop()
    if (order, rank) == ("end", group.rank):
        raise NotFinite("a fault in end")


def _fail_in(group: Group, order: str) -> None:
    """Let this rank fail at the second step of an order."""
    report = group.progress
    taken: list[str] = []
    next_order = group.next_order

    def noted() -> tuple[str, bytes]:
        found = next_order()
        taken[:] = [found[0]]
        return found

    def progress(doing: str) -> None:
        if group.is_first or taken == [order]:
            raise NotFinite(f"a fault in {order}")
        report(doing)

    group.next_order = noted  # type: ignore[method-assign]
    group.progress = progress  # type: ignore[method-assign]


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _digest(leader: Leader) -> str:
    tensors = {
        f"{group}/{name}": local(tensor).contiguous()
        for group, named in leader.learner.models.state().items()
        for name, tensor in named.items()
    }
    return hashlib.sha256(save(tensors)).hexdigest()
