"""Models that several ranks load together: each reads only its own rows of the weights from the files.

A model is built without weights, divided, and then read. Where that is not possible, such as from a GGUF
file, the first rank loads the whole model and sends it tensor by tensor, so at most one rank ever holds a
copy. What the first rank refuses, all refuse with its message.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, core_model_loading, modeling_utils

from fairlead.config.base import ComputeSection
from fairlead.errors import FairleadError, ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.gguf import gguf_file
from fairlead.nn.loading import AutoClass, Loader, load_config, load_pretrained, without_weights
from trainer.distributed.blocks import rows_of
from trainer.distributed.group import Group
from trainer.distributed.sharding import divided

logger = logging.getLogger(__name__)


def loader(group: Group) -> Loader:
    """Return what loads models in place of `load_pretrained`: on several ranks, each tensor as a DTensor."""
    return load_pretrained if group.size == 1 else partial(_load, group)


def _load(
    group: Group,
    auto: AutoClass,
    path: str,
    section: ComputeSection,
    *,
    allowed_missing: Collection[str] = (),
    **settings: object,
) -> PreTrainedModel:
    mesh = init_device_mesh("cpu", (group.size,))
    load = partial(load_pretrained, auto, path, section, allowed_missing=allowed_missing, **settings)
    model: PreTrainedModel | None = None
    try:
        load_config(path)
        obstacle = _obstacle(path)
        if not obstacle:
            with _dividing(mesh):
                model = load()
    except (FairleadError, _Undividable) as error:
        obstacle = str(error)
    obstacles = [one.decode() for one in group.all_gather(obstacle.encode())]
    if model is not None and not any(obstacles):
        return model
    model = None
    if group.is_first:
        logger.info("the first rank loads %r for all ranks: %s", path, next(filter(None, obstacles)))
    return sent(load if group.is_first else partial(without_weights, auto, path, **settings), group)


class _Undividable(Exception):
    """The rows of a model's weights cannot be read from its files; says why."""


def _obstacle(path: str) -> str:
    """Return why the weights of a model have to be loaded whole; empty if there is no reason."""
    if adapters.base_of(path) is not None:
        return "an adapter is added to the weights of its base"
    if gguf_file(path) is not None:
        return "the weights of a GGUF file are decoded"
    return ""


def _keeps_rows(operation: object) -> bool:
    """Return whether a conversion of transformers gives the right rows from rows, as those of experts do.

    Single experts are stacked along the rows, of which a rank reads only its own.
    """
    along = {"MergeModulelist": (0,), "Concatenate": (1, 2)}
    return getattr(operation, "dim", None) in along.get(type(operation).__name__, ())


@contextmanager
def _dividing(mesh: DeviceMesh) -> Iterator[None]:
    """Divide models that transformers loads within the block, after they are built and before they are read.

    transformers reads only the rows of parameters that are DTensors. It divides models itself only by plans
    of its own, so its function that reads the weights is wrapped.
    """
    module: Any = modeling_utils
    original = getattr(module, "convert_and_load_state_dict_in_model", None)
    if original is None or not hasattr(core_model_loading, "DtensorShardOperation"):
        raise _Undividable("this version of transformers reads no rows of weights")

    def read(*args: object, **kwargs: object) -> object:
        model = kwargs.get("model", args[0] if args else None)
        if not isinstance(model, PreTrainedModel):
            raise _Undividable("this version of transformers reads weights in another way")
        _divide(model, mesh)
        found = original(*args, **kwargs)
        _check_read(model, found[0])
        return found

    module.convert_and_load_state_dict_in_model = read
    try:
        yield
    finally:
        module.convert_and_load_state_dict_in_model = original


def _divide(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Replace the parameters of a model without weights by ones of which this rank holds some rows."""
    for prefix, module in model.named_modules():
        for name, parameter in list(nn.Module.named_parameters(module, recurse=False)):
            if _is_divided(f"{prefix}.{name}", parameter):
                first, end = rows_of(mesh.get_local_rank(), len(parameter), ranks=mesh.size())
                rows = divided(parameter.detach()[first:end], parameter, mesh)
                setattr(module, name, nn.Parameter(rows, requires_grad=parameter.requires_grad))


def _is_divided(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is divided: every one but the head's, which is small and may be drawn."""
    return parameter.ndim > 0 and name.removeprefix(".").partition(".")[0] not in adapters.HEADS


def _check_read(model: PreTrainedModel, report: Any) -> None:  # noqa: ANN401  # an internal type of transformers
    """Check that every divided parameter has the rows that the whole model would have there.

    Raises:
        _Undividable: if not, or if it cannot be known; the first rank then decides by the whole model.
    """
    tied = model.all_tied_weights_keys
    for target, source in tied.items():
        if not {target, source} & set(report.missing_keys):
            raise _Undividable(f"{target} and {source} are tied and both in the files")
    if report.mismatched_keys or report.conversion_errors:
        raise _Undividable("shapes in the files differ from the model's")
    related = {*tied, *tied.values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in report.missing_keys and name not in related and isinstance(parameter.data, DTensor):
            raise _Undividable(f"{name} is not in the files")
    for conversion in getattr(model, "_weight_conversions", None) or ():
        for operation in getattr(conversion, "operations", ()):
            if not _keeps_rows(operation):
                raise _Undividable(f"weights are converted ({type(operation).__name__})")


def sent(load: Callable[[], PreTrainedModel], group: Group) -> PreTrainedModel:
    """Return a model whose weights the first rank loads and sends to the others, tensor by tensor.

    Args:
        load: called on every rank; gives the whole model on the first one, and on the others one without
            weights.
        group: the ranks.

    Raises:
        ModelLoadError: on every rank, if the first one cannot load the model.
    """
    model: PreTrainedModel | None = None
    failure = ""
    if group.is_first:
        try:
            model = load()
        except ModelLoadError as error:
            failure = str(error)
    failure = group.broadcast(failure.encode()).decode()
    if failure:
        raise ModelLoadError(failure)
    model = model if model is not None else load()
    places = _places(model)
    mesh = init_device_mesh("cpu", (group.size,))
    listing = group.broadcast(json.dumps(_listing(model) if group.is_first else []).encode())
    for one in json.loads(listing):
        group.progress(f"loading {one['names'][0]}")
        module, name = places[one["names"][0]]
        tensor = getattr(module, name).detach() if group.is_first else None
        value: Tensor
        if one["divided"]:
            whole = torch.empty(one["shape"], dtype=getattr(torch, one["dtype"]), device="meta")
            value = divided(_scattered(tensor, whole, group), whole, mesh)
        else:
            packed = to_bytes({"whole": tensor.contiguous()}) if tensor is not None else b""
            value = from_bytes(group.broadcast(packed))["whole"]
        if one["is_parameter"]:
            value = nn.Parameter(value, requires_grad=one["requires_grad"])
        for module, name in (places.pop(name) for name in one["names"]):
            setattr(module, name, value)
    # What follows, such as reading the data, has no limit of progress.
    group.idle("has loaded a model")
    # transformers would write the names of the files again, which only the first rank knows.
    model.__dict__["_weight_conversions"] = []
    if places:
        raise ModelLoadError(f"the first rank has not sent {', '.join(places)} of {type(model).__name__}")
    return model


def _places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return the module and the own name of every parameter and buffer, by its full name."""
    return {
        f"{prefix}.{name}".removeprefix("."): (module, name)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for kind in (nn.Module.named_parameters, nn.Module.named_buffers)
        for name, _ in kind(module, recurse=False, remove_duplicate=False)
    }


def _listing(model: nn.Module) -> list[dict[str, object]]:
    """Return what the other ranks must know of each parameter and buffer, tied ones once with all names."""
    found: dict[int, dict[str, Any]] = {}
    for name, (module, own) in _places(model).items():
        tensor = getattr(module, own)
        is_parameter = isinstance(tensor, nn.Parameter)
        entry = {
            "names": [],
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "is_parameter": is_parameter,
            "divided": is_parameter and _is_divided(name, tensor),
            "requires_grad": tensor.requires_grad,
        }
        found.setdefault(id(tensor), entry)["names"].append(name)
    return list(found.values())


def _scattered(tensor: Tensor | None, whole: Tensor, group: Group) -> Tensor:
    """Return the rows of this rank of a tensor that the first one has.

    Args:
        tensor: on the first rank.
        whole: has its shape and type, on the meta device.
        group: the ranks.
    """
    each = -(-len(whole) // group.size)
    own = torch.empty(each, *whole.shape[1:], dtype=whole.dtype)
    parts = None
    if tensor is not None:
        parts = []
        for rank in range(group.size):
            first, end = rows_of(rank, len(whole), ranks=group.size)
            part = tensor[first:end]
            if end - first < each:
                part = torch.cat([part, part.new_zeros(each - (end - first), *whole.shape[1:])])
            parts.append(_bytes(part.contiguous()))
    dist.scatter(_bytes(own), parts)
    first, end = rows_of(group.rank, len(whole), ranks=group.size)
    return own[: end - first]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
