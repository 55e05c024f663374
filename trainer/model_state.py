"""The state of a model and its optimizer as named tensors, for checkpoints. Knows no stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fairlead.errors import CorruptCheckpoint
from fairlead.nn import adapters
from trainer.distributed.sharding import is_divided, local
from trainer.distributed.slices import rows_for, shape_of


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes: the adapters of a model with adapters, else its state dict.

    Tied tensors are returned once. The adapters of a policy have the names of peft's files, as in the weight
    store.
    """
    if adapters.is_adapted(model):
        return {name: parameter.detach() for name, parameter in adapters.tensors(model).items()}
    named = dict(nn.Module.named_parameters(model))
    if all(parameter.requires_grad for parameter in named.values()):
        return unique_tensors(model)
    return {name: parameter.detach() for name, parameter in named.items() if parameter.requires_grad}


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with every tied tensor once, under its first name.

    Tied means the same parameter: the addresses of divided tensors say nothing.
    """
    seen: set[int] = set()
    tensors = {}
    for name, tensor in nn.Module.state_dict(model, keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy the tensors of a checkpoint into a model.

    Raises:
        CorruptCheckpoint: if names or shapes do not match; names `what`.
    """
    expected = trained_tensors(model)
    if set(expected) != set(tensors) or any(
        tuple(expected[name].shape) != shape_of(tensors, name) for name in expected
    ):
        raise CorruptCheckpoint(f"the {what} of the checkpoint has another architecture than the run's model")
    with torch.no_grad():
        for name, tensor in expected.items():
            local(tensor).copy_(rows_for(tensor, tensors, name))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer, each tensor named by its parameter and its key."""
    return {
        f"{name}:{key}": value.detach()
        for name, parameter in nn.Module.named_parameters(model)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned.

    Raises:
        CorruptCheckpoint: if the model has no parameter of a name.
    """
    parameters = dict(nn.Module.named_parameters(model))
    optimizer.state.clear()
    for joined in tensors:
        name, _, key = joined.rpartition(":")
        if name not in parameters:
            raise CorruptCheckpoint(
                f"the optimizer of the checkpoint has a parameter {name!r} that the model does not have"
            )
        parameter = parameters[name]
        if key == "step":  # Adam keeps it on the device where it was created, all else with the parameter
            optimizer.state[parameter][key] = tensors[joined].clone()
        elif is_divided(parameter):
            target = torch.zeros_like(parameter)
            local(target).copy_(rows_for(parameter, tensors, joined))
            optimizer.state[parameter][key] = target
        else:
            optimizer.state[parameter][key] = tensors[joined].to(parameter.device, copy=True)
