"""One rank of the benchmark: `python -m benchmarks.ranks.rank FOLDER [quick]`; rank 0 prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM, PreTrainedModel

from benchmarks import tiny_models
from fairlead.config.infrastructure import RanksSection
from fairlead.nn import allocator
from fairlead.transports.weights.base import Ancestor, Shard
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from trainer import optim
from trainer.checkpoint import CheckpointStore
from trainer.distributed import sharding, slices, whole_files
from trainer.distributed.group import Group, join
from trainer.distributed.place import place
from trainer.model_state import optimizer_tensors, trained_tensors, unique_tensors

SHARD_BYTES = 2 << 30
Write = Callable[[int], None]


def main() -> None:
    """Join, measure every variant in turn, and print the medians."""
    quick = sys.argv[2:] == ["quick"]
    section = RanksSection()
    with join(place(section), section, device="cpu") as group:
        found = _Writing(group, Path(sys.argv[1]), quick=quick).measure(rounds=1 if quick else 3)
    if group.is_first:
        print(json.dumps(found))


def new_model(*, quick: bool) -> PreTrainedModel:
    """Return a model of the shape of SmolLM2-135M, or a tiny one."""
    config = tiny_models.smollm2(quick=quick)
    torch.manual_seed(0)
    model: PreTrainedModel = LlamaForCausalLM(config)
    return model


class _Writing:
    """A model in shares, with an optimizer that has made a step, and the ways to write them."""

    def __init__(self, group: Group, folder: Path, *, quick: bool) -> None:
        self._group = group
        self._model = new_model(quick=quick)
        root = sharding.Root(self._model)
        sharding.shard(root, torch.device("cpu"), compute=torch.float32, group=group)
        self._optimizer = optim.adamw(optim.learning(self._model), learning_rate=1e-6, weight_decay=0.0)
        for parameter in nn.Module.parameters(self._model):
            parameter.grad = torch.ones_like(parameter)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._weights = FilesystemWeightStore(folder / "weights")
        self._checkpoints = CheckpointStore(folder / "checkpoints")
        self._finish: Callable[[], object] | None = None

    def measure(self, *, rounds: int) -> dict[str, dict[str, float]]:
        """Return seconds, CPU seconds, bytes and peak memory of each variant, which take turns."""
        variants: dict[str, Write] = {
            "version_shares": self._version_in_shares,
            "version_full": self._version_by_rank_0,
            "checkpoint_shares": self._checkpoint_in_shares,
            "checkpoint_full": self._checkpoint_by_rank_0,
            "checkpoint_begun": self._begin_checkpoint,
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
        number = 0
        for _ in range(rounds + 1):  # the first is a warm-up
            for name, write in variants.items():
                number += 1
                found[name].append(self._one(write, number))
        return {
            name: {key: statistics.median(one[key] for one in turns[-rounds:]) for key in turns[0]}
            for name, turns in found.items()
        }

    def _one(self, write: Write, number: int) -> dict[str, float]:
        self._group.barrier()
        before = reset_peak()
        start, cpu_start = time.perf_counter(), time.process_time()
        write(number)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        own = json.dumps([seconds, cpu, peak_bytes() - before]).encode()
        all_ranks = [json.loads(one) for one in self._group.all_gather(own)]
        if self._finish is not None:
            self._finish()
            self._finish = None
        folder = self._checkpoints.root / "1-1"
        if write.__name__.startswith("_version"):
            folder = self._weights.root / str(WeightVersion(1, number))
        size = sum(file.stat().st_size for file in folder.iterdir())
        self._group.barrier()
        if self._group.is_first:
            self._weights.prune(keep=1)
        return {
            "seconds": max(one[0] for one in all_ranks),
            "cpu": sum(one[1] for one in all_ranks),
            "memory": max(one[2] for one in all_ranks),
            "bytes": size,
        }

    def _state(self) -> dict[str, dict[str, Tensor]]:
        return {
            "policy": trained_tensors(self._model),
            "policy_optimizer": optimizer_tensors(self._model, self._optimizer),
        }

    def _version_in_shares(self, number: int) -> None:
        tensors = unique_tensors(self._model)

        def write(folder: Path) -> list[Shard]:
            return whole_files.write(folder, tensors, self._group, limit_bytes=SHARD_BYTES, dtype=None)

        if not self._group.is_first:
            write(Path(self._group.broadcast(b"").decode()))
            return
        described: dict[str, Shard] = {}
        version = WeightVersion(1, number)
        with self._weights.publish(
            version, parent=None, lineage=(Ancestor(1, 0),), described=described
        ) as folder:
            self._group.broadcast(str(folder).encode())
            described |= {shard.name: shard for shard in write(folder)}

    def _version_by_rank_0(self, number: int) -> None:
        tensors = _gathered(unique_tensors(self._model), self._group)
        if self._group.is_first:
            version = WeightVersion(1, number)
            with self._weights.publish(version, parent=None, lineage=(Ancestor(1, 0),)) as folder:
                save_file(tensors, folder / "model-00001.safetensors")

    def _checkpoint_in_shares(self, number: int) -> None:
        def announce(folder: Path) -> None:
            self._group.broadcast(str(folder).encode())

        if self._group.is_first:
            self._checkpoints.save(
                WeightVersion(1, 1), tensors=self._state(), state={}, group=self._group, announce=announce
            )
        else:
            slices.write(Path(self._group.broadcast(b"").decode()), self._state(), self._group)

    def _begin_checkpoint(self, number: int) -> None:
        """Copy, and let a thread write, which is not measured: training continues meanwhile."""

        def announce(folder: Path) -> None:
            self._group.broadcast(str(folder).encode())

        if self._group.is_first:
            version = WeightVersion(1, 1)
            self._finish = self._checkpoints.begin(
                version, tensors=self._state(), state={}, group=self._group, announce=announce
            ).commit
        else:
            folder = Path(self._group.broadcast(b"").decode())
            self._finish = slices.Writing(folder, self._state(), self._group).finish

    def _checkpoint_by_rank_0(self, number: int) -> None:
        state = {name: _gathered(group, self._group) for name, group in self._state().items()}
        if self._group.is_first:
            self._checkpoints.save(WeightVersion(1, 1), tensors=state, state={})


def _gathered(tensors: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Collect every tensor on every rank; return them on rank 0."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if group.is_first:
            found[name] = whole
    return found


def reset_peak() -> int:
    """Forget the peak memory of this process; return what it uses now, in bytes."""
    allocator.give_back()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
