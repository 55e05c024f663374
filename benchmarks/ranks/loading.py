"""One rank of the benchmark: `python -m benchmarks.ranks.loading FOLDER [quick]`; rank 0 prints JSON.

Loads a model from a file in bfloat16 into float32 weights that are divided, and writes its folder as at the
end of a stage; each as it is done, and by whole models.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.ranks.rank import new_model, peak_bytes, reset_peak
from fairlead.config.base import ComputeSection
from fairlead.config.infrastructure import RanksSection
from fairlead.nn.loading import load_causal_lm
from trainer import durable
from trainer.distributed import model_folder, sharding
from trainer.distributed.collectives import whole_on_cpu
from trainer.distributed.group import Group, join
from trainer.distributed.loading import loader
from trainer.distributed.place import place
from trainer.model_state import load_tensors, trained_tensors

_Result = TypeVar("_Result")

_SECTION = ComputeSection(device="cpu")


def main() -> None:
    """Join, measure every variant, and print the largest figures of all ranks."""
    section = RanksSection()
    with join(place(section), section, device="cpu") as group:
        found = _Measured(group, Path(sys.argv[1]), quick=sys.argv[2:] == ["quick"]).all()
    if group.is_first:
        print(json.dumps(found))


class _Measured:
    """A model in a folder, and the ways to load and to write it."""

    def __init__(self, group: Group, folder: Path, *, quick: bool) -> None:
        self._group = group
        self._source = folder / "source"
        self._written = folder / "written"
        if group.is_first:
            new_model(quick=quick).bfloat16().save_pretrained(self._source)
        group.barrier()

    def all(self) -> dict[str, dict[str, float]]:
        """Return seconds and peak memory of each variant, and the bytes of the weights."""
        found = {}
        for name, whole in (("load_rows", False), ("load_whole", True)):
            model, found[name] = self._one(partial(self._load, whole=whole))
            weights_bytes = sum(one.numel() * 4 for one in nn.Module.parameters(model))
            _, found[name.replace("load", "folder")] = self._one(partial(self._write, model, whole=whole))
            del model
        return found | {"model": {"bytes": weights_bytes}}

    def _one(self, work: Callable[[], _Result]) -> tuple[_Result, dict[str, float]]:
        gc.collect()
        self._group.barrier()
        before, start = reset_peak(), time.perf_counter()
        result = work()
        own = json.dumps([time.perf_counter() - start, peak_bytes() - before]).encode()
        ranks = [json.loads(one) for one in self._group.all_gather(own)]
        return result, {"seconds": max(one[0] for one in ranks), "memory": max(one[1] for one in ranks)}

    def _load(self, *, whole: bool) -> PreTrainedModel:
        reader = None if whole else loader(self._group)
        model = load_causal_lm(str(self._source), _SECTION, load=reader)
        root = sharding.Root(model, self._group)
        sharding.shard(root, torch.device("cpu"), compute=torch.float32, group=self._group)
        return model

    def _write(self, model: PreTrainedModel, *, whole: bool) -> None:
        if not whole:
            with model_folder.new_folder(self._written, self._group) as folder:
                model_folder.write(folder, model, self._group, merge=False)
            return
        tensors = whole_on_cpu(trained_tensors(model), self._group)
        if self._group.is_first:
            found = load_causal_lm(str(self._source), _SECTION)
            load_tensors(found, tensors, "model")
            with durable.new_folder(self._written) as folder:
                found.save_pretrained(folder)


if __name__ == "__main__":
    main()
