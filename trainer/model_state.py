"""The state of a model and its optimizer as named tensors, for checkpoints. Knows no stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fairlead.errors import CorruptCheckpoint
from fairlead.nn import adapters


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
    """Return the state dict with every tied tensor once, under its first name."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    tensors = {}
    for name, tensor in nn.Module.state_dict(model).items():
        key = tensor.data_ptr(), tensor.shape, tensor.stride()
        if key not in seen or not tensor.numel():
            seen.add(key)
            tensors[name] = tensor.detach()
    return tensors


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy the tensors of a checkpoint into a model.

    Raises:
        CorruptCheckpoint: if names or shapes do not match; names `what`.
    """
    expected = trained_tensors(model)
    if set(expected) != set(tensors) or any(expected[name].shape != tensors[name].shape for name in expected):
        raise CorruptCheckpoint(f"the {what} of the checkpoint has another architecture than the run's model")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


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
    for joined, tensor in tensors.items():
        name, _, key = joined.rpartition(":")
        if name not in parameters:
            raise CorruptCheckpoint(
                f"the optimizer of the checkpoint has a parameter {name!r} that the model does not have"
            )
        parameter = parameters[name]
        # Adam keeps its step count on the device where it was created, everything else with the parameter.
        target = tensor.clone() if key == "step" else tensor.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = target
