"""The folder of a trained model, written by all ranks as one would write it, without a copy of it anywhere.

Each tensor is gathered at the rank that owns it, which adds its adapter, if there is one, and writes it.
Other programs read the folder as one of transformers, or of peft.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, core_model_loading

from fairlead.nn import adapters
from fairlead.nn.checks import INDEX_FILE
from trainer import durable
from trainer.distributed import whole_files
from trainer.distributed.collectives import whole_on_cpu
from trainer.distributed.group import Group
from trainer.distributed.whole_files import Unit
from trainer.tensor_file import Shape

_FILE_BYTES = 4 << 30
"""Largest size of a file with more than one tensor."""
_METADATA = {"format": "pt"}


@contextmanager
def new_folder(path: Path, group: Group) -> Iterator[Path]:
    """Yield, on every rank, the same folder to write into; see `durable.new_folder`."""
    if group.is_first:
        with durable.new_folder(path) as folder:
            group.broadcast(str(folder.absolute()).encode())
            yield folder
    else:
        yield Path(group.broadcast(b"").decode())


def write(
    folder: Path,
    model: PreTrainedModel,
    group: Group,
    *,
    merge: bool,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model as `adapters.save` does; every rank calls this.

    When it returns on rank 0, the files of all ranks are complete.

    Args:
        folder: exists; the same for all ranks.
        model: divided among the ranks.
        group: the ranks.
        merge: add the adapters to the weights.
        head: see `adapters.save`; whole on rank 0.
    """
    if group.size == 1:
        adapters.save(model, folder, merge=merge, head=head)
        return
    if adapters.is_adapted(model) and not merge:
        kept = whole_on_cpu(adapters.tensors(model), group)
        if group.is_first:
            adapters.save_tensors(model, folder, kept, head=head)
        return
    units = list(_units(model))
    paths = whole_files.write_units(folder, units, group, limit_bytes=_FILE_BYTES, metadata=_METADATA)
    written = group.gather(json.dumps([path.name for path in paths]).encode())
    if group.is_first:
        names = [name for part in written for name in json.loads(part)]
        _name_files(folder, names, nbytes=sum(unit.nbytes for unit in units))
        _write_settings(folder, model)


def _write_settings(folder: Path, model: PreTrainedModel) -> None:
    """Write the configurations as `save_pretrained` does."""
    config = copy.deepcopy(model.config)
    adapted = adapters.is_adapted(model)  # merged weights are float32
    config.dtype = "float32" if adapted else str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _name_files(folder: Path, names: list[str], *, nbytes: int) -> None:
    """Give the files the names of transformers, and write the index of several; `nbytes` of all tensors."""
    weight_map: dict[str, str] = {}
    for number, name in enumerate(names, start=1):
        new = f"model-{number:05d}-of-{len(names):05d}.safetensors" if len(names) > 1 else "model.safetensors"
        (folder / name).rename(folder / new)
        with safe_open(folder / new, framework="pt") as opened:
            tensors = opened.keys()
        weight_map |= dict.fromkeys(tensors, new)
    if len(names) > 1:
        index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _units(model: PreTrainedModel) -> Iterator[Unit]:
    """Yield what is gathered and written together: single tensors, and layers with their adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_layer = isinstance(module, BaseTunerLayer)
        if is_layer and not any(name.startswith(f"{outer}.") for outer in layers):
            layers[name] = module
    adapted = adapters.is_adapted(model)
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    seen: set[int] = set()
    done: set[str] = set()
    for name, tensor in nn.Module.state_dict(model, keep_vars=True).items():
        if name in ignored or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        layer = next((outer for outer in layers if name.startswith(f"{outer}.")), None)
        if layer is None:
            yield _original(model, Unit.of(name, tensor.detach(), torch.float32 if adapted else None))
        elif layer not in done:
            done.add(layer)
            yield _original(model, _merged(layer, layers[layer]))


def _merged(prefix: str, layer: nn.Module) -> Unit:
    """Return the unit of a layer whose adapter is added to its weights, in float32 as `adapters.merged`."""
    named = dict(nn.Module.named_parameters(layer))
    final = {name: f"{prefix}.{name.replace('base_layer.', '')}" for name in named if "lora_" not in name}

    def convert(whole: dict[str, Tensor]) -> dict[str, Tensor]:
        found = dict(nn.Module.named_parameters(_with_adapters_added(layer, whole)))
        return {final[name]: found[name].detach() for name in final}

    return Unit(
        {name: one.detach() for name, one in named.items()},
        {final[name]: Shape(tuple(named[name].shape), torch.float32) for name in final},
        convert,
        torch.float32,
    )


def _with_adapters_added(layer: nn.Module, whole: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of one of peft's layers with other weights, to which its adapters are added.

    Args:
        layer: its weights are neither read nor changed.
        whole: a tensor in place of each of its parameters; may be changed.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = _with_parameters(layer, whole, "")
    for module in found.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
    return found


def _with_parameters(module: nn.Module, whole: Mapping[str, Tensor], prefix: str) -> nn.Module:
    found = copy.copy(module)
    # The copy shares these with the original.
    found.__dict__["_parameters"] = {
        name: one if one is None else nn.Parameter(whole[prefix + name], requires_grad=False)
        for name, one in module._parameters.items()
    }
    found.__dict__["_modules"] = {
        name: one if one is None else _with_parameters(one, whole, f"{prefix}{name}.")
        for name, one in module._modules.items()
    }
    if "merged_adapters" in module.__dict__:
        found.__dict__["merged_adapters"] = []
    return found


def _original(model: PreTrainedModel, unit: Unit) -> Unit:
    """Return a unit that is written with the names that the model's files had, as `save_pretrained` does.

    transformers gives the weights of experts, for example, other shapes than their files have.
    """
    revert: Any = getattr(core_model_loading, "revert_weight_conversion", None)
    if revert is None or not getattr(model, "_weight_conversions", None):
        return unit
    empty = {
        name: torch.empty(shape.shape, dtype=shape.dtype, device="meta")
        for name, shape in unit.written.items()
    }
    written = {name: Shape.of(one) for name, one in revert(model, empty).items()}
    return Unit(unit.tensors, written, lambda whole: revert(model, dict(unit.convert(whole))), unit.dtype)
