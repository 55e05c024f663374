"""One model for inference, divided among a few processes by transformers' tensor-parallel plan.

Each process, a rank, holds a part of every large matrix and runs the same batches in the same order. What is
run, and how the processes are started, is not known here. The trainer divides its models in another way
(`trainer/distributed`).
"""

from __future__ import annotations

import os
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import FileStore
from transformers import PreTrainedConfig
from transformers.distributed.configuration_utils import DistributedConfig

from fairlead.errors import ConfigError, ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.attention_heads import check_heads

_FOREVER = timedelta(days=365)
"""Time limit of collectives: the process that started the ranks ends them if one of them hangs."""


def join(rank: int, size: int, *, meeting_point: Path, device: torch.device) -> None:
    """Wait for the other ranks, and form the default process group of torch.distributed with them.

    Args:
        rank: number of this process.
        size: number of processes, at least 2; all on this machine.
        meeting_point: a file that does not exist yet, over which the ranks find one another.
        device: device of the model. Which GPU it is says `LOCAL_RANK`, as for transformers.
    """
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = FileStore(str(meeting_point), size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_FOREVER)


def division(path: str, config: PreTrainedConfig, size: int, *, field: str) -> DistributedConfig:
    """Return the argument `distributed_config` with which `load_pretrained` loads the part of this rank.

    Args:
        path: folder or hub id.
        config: the configuration of the model.
        size: number of ranks, at least 2, which have joined.
        field: name of the setting, for errors.

    Raises:
        ConfigError: if the model cannot be divided among that many ranks.
        ModelLoadError: if it cannot be divided at all.
    """
    if kind := adapters.kind_of_part(path):
        raise ModelLoadError(
            f"{path!r} is {kind}, which cannot be divided among GPUs: set {field} = 1, or give a whole model "
            "in safetensors files"
        )
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise ModelLoadError(
            f"transformers has no tensor-parallel plan for {text.model_type!r} of {path!r}: set {field} = 1"
        )
    heads = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    attention, key_value = (number if isinstance(number, int) else None for number in heads)
    check_heads(size, attention=attention, key_value=key_value, model=repr(path), field=field)
    if "tp_size" not in {each.name for each in fields(DistributedConfig)}:
        version = transformers.__version__
        raise ConfigError(
            field, got=f"{size}, with transformers {version}", allowed="1, or transformers >= 5.20"
        )
    return DistributedConfig(tp_size=size, tp_plan="auto")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor in full, if it is divided among ranks; all of them must call this."""
    full = getattr(tensor, "full_tensor", None)
    if full is None:
        return tensor
    found = full()
    assert isinstance(found, Tensor)
    return found
