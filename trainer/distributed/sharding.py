"""Models divided among ranks by FSDP2.

Every function that reads weights runs inside `Root`, which is what FSDP wraps. A gradient is the sum of all
ranks' gradients, so a loss is divided by the tokens of all ranks. Knows no stage and no loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard

from fairlead.config.training import TrainingSection
from fairlead.nn.heads import ScalarHead
from fairlead.nn.linear import use_onednn
from fairlead.nn.loading import torch_dtype
from trainer.distributed import tensor_parallel
from trainer.distributed.blocks import block_of
from trainer.distributed.group import Group
from trainer.memory import blocks_of

SHARES, TENSOR_PARALLEL = "shares", "tp"
"""Dimensions of the mesh: FSDP divides over the first, tensor parallelism over the second."""

_Model = TypeVar("_Model", bound=nn.Module)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class Root(nn.Module):
    """The root of a sharded model: gathers the weights outside of its blocks for as long as a function runs.

    FSDP prepares weights when a module is called, so a function that uses parts of a model on their own, such
    as body and output layer, has to run inside a call. Without sharding it is only a call.
    """

    def __init__(
        self, model: nn.Module, group: Group | None = None, *, device: torch.device | None = None
    ) -> None:
        """
        Args:
            model: the model.
            group: the ranks that share it; None: only this process.
            device: the device that it computes on; None: that of its weights.
        """
        super().__init__()
        use_onednn(model)
        self.model = model
        self.group = group or Group.single()
        self.device = device or next(nn.Module.parameters(model)).device

    def __call__(self, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - as that of a module
        """Call `forward`; without gradients, divide all weights again.

        FSDP keeps the weights outside of blocks gathered for a backward pass. Without one they would stay
        whole and in the data type of the pass, also in a checkpoint.
        """
        found = super().__call__(*args, **kwargs)
        if not torch.is_grad_enabled() and isinstance(self, FSDPModule):
            self.reshard()
        return found

    def forward(
        self,
        function: Callable[Concatenate[_Model, _Given], _Result],
        *args: _Given.args,
        **kwargs: _Given.kwargs,
    ) -> _Result:
        """Return `function(model, ...)`, a tensor or a tuple of tensors."""
        return function(self.model, *args, **kwargs)  # type: ignore[arg-type]

    def check(self, function: Callable[[_Model], None]) -> None:
        """Call `function(model)` without gradients; every rank calls this."""
        with torch.no_grad():
            self(function)


def shard(
    root: nn.Module,
    device: torch.device,
    *,
    compute: torch.dtype,
    group: Group,
    offload: bool = False,
) -> None:
    """Divide the weights of a model among all ranks, block by block.

    A tensor is divided by rows; with tensor parallelism, the part of it that some neighbouring ranks hold.
    Tied weights, embeddings and the output layer belong to the group of the root. Weights, gradients and
    their sum over ranks keep the type of the weights; blocks compute in `compute`, heads in float32.

    Args:
        root: what is called to compute. Its weights are equal on all ranks, on the CPU or on `device`, or
            divided already (`trainer/distributed/loading.py`), which leaves this rank's rows as they are.
        device: the device of this rank.
        compute: float32 or bfloat16.
        group: the ranks; nothing is changed for one.
        offload: keep weights, gradients and the optimizer's state in the memory of the host; those of a block
            are copied to the device while it computes.
    """
    if group.size == 1:
        return
    places = _without_rows(root)
    where = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    mesh = _mesh(device.type, group.num_shares, group.tensor_parallel)
    if group.tensor_parallel > 1:
        tensor_parallel.divide(root, mesh[TENSOR_PARALLEL])
        mesh = mesh[SHARES]
    lower = compute == torch.bfloat16
    policy = MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False)
    blocks = blocks_of(root)
    heads = [module for module in root.modules() if isinstance(module, ScalarHead)] if lower else []
    for head in heads:
        _shard(head, mesh, MixedPrecisionPolicy(), where)
    for module in (*blocks, root):
        _shard(module, mesh, policy if lower else MixedPrecisionPolicy(), where)
    _fill(places, torch.device("cpu") if offload else device)


@dataclass(frozen=True, slots=True)
class _Place:
    """A parameter of a module, and the rows of this rank that belong there."""

    module: nn.Module
    name: str
    rows: DTensor


def _without_rows(root: nn.Module) -> list[_Place]:
    """Replace divided parameters by ones without values, as FSDP expects them; return their rows."""
    replaced: dict[int, nn.Parameter] = {}
    places = []
    for module in root.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter.data, DTensor):
                places.append(_Place(module, name, parameter.data))
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                replaced.setdefault(id(parameter), nn.Parameter(empty, requires_grad=parameter.requires_grad))
                setattr(module, name, replaced[id(parameter)])
    return places


def _fill(places: list[_Place], device: torch.device) -> None:
    """Give FSDP's parameters their rows; it looks for replaced parameters before the first forward pass.

    Rows are removed from the list as they are used, so that only a tensor of them exists twice.
    """
    filled: dict[int, nn.Parameter] = {}
    places.reverse()
    while places:
        place = places.pop()
        target = getattr(place.module, place.name)
        if id(target) not in filled:
            part = _part(place.rows, target, device)
            filled[id(target)] = nn.Parameter(part, requires_grad=target.requires_grad)
        setattr(place.module, place.name, filled[id(target)])


def _part(rows: DTensor, target: DTensor, device: torch.device) -> DTensor:
    """Return rows of a tensor in the way that FSDP's `target` is divided; they are on the CPU."""
    own = rows.to_local()
    if target.device_mesh.ndim > 1:  # tensor parallelism: other parts than rows
        own = block_of(target, dist.get_rank()).of(rows.full_tensor())
    # A view would keep all that it is a part of, such as a whole file.
    is_view = own.untyped_storage().nbytes() > own.nbytes
    own = own.to(device, copy=is_view).contiguous()
    return DTensor.from_local(
        own,
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )


def divided(rows: Tensor, whole: Tensor, mesh: DeviceMesh) -> DTensor:
    """Return a tensor of which this rank holds some rows.

    Args:
        rows: those of this rank; see `rows_of`.
        whole: has the shape of the whole tensor; may be on the meta device.
        mesh: all ranks.
    """
    return DTensor.from_local(
        rows, mesh, (Shard(0),), run_check=False, shape=whole.shape, stride=whole.stride()
    )


@functools.cache
def _mesh(device: str, shares: int, parts: int) -> DeviceMesh:
    """Return all ranks: those that divide a layer are neighbours."""
    if parts == 1:
        return init_device_mesh(device, (shares,))
    mesh = init_device_mesh(device, (shares, parts), mesh_dim_names=(SHARES, TENSOR_PARALLEL))
    # Sums over all ranks, such as a norm, then are one collective.
    mesh._flatten("ranks")
    return mesh


def autocast_dtype(section: TrainingSection, group: Group) -> torch.dtype:
    """Return the type that autocast computes in; divided weights are gathered in the section's type."""
    return torch_dtype(section) if group.size == 1 else torch.float32


def _shard(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, where: OffloadPolicy) -> None:
    fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=where)
    assert isinstance(module, FSDPModule)
    # A plain sum: gloo has no scaled one, and that of NCCL has returned zeros in bfloat16.
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)


@contextmanager
def sharing(first: nn.Module, second: nn.Module | None) -> Iterator[None]:
    """Divide two models within the block, and let them have the same rows of frozen weights they share.

    Each call of `shard` makes rows of its own; those of the second model are then replaced by the first's.
    Without a second model nothing is shared.
    """
    owners_of = {
        id(parameter): (module, name)
        for module in first.modules()
        for name, parameter in _own_parameters(module)
        if not parameter.requires_grad
    }
    shared = [
        (module, name, *owners_of[id(parameter)])
        for module in (second.modules() if second is not None else ())
        for name, parameter in _own_parameters(module)
        if id(parameter) in owners_of
    ]
    yield
    for module, name, owner, own_name in shared:
        # FSDP looks for replaced parameters before the first forward pass.
        setattr(module, name, getattr(owner, own_name))


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return nn.Module.named_parameters(module, recurse=False)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds; all of them if it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_divided(tensor: Tensor) -> bool:
    """Return whether each rank holds only a part of a tensor."""
    return isinstance(tensor, DTensor)


def owners(sizes: Iterable[int], *, ranks: int) -> list[int]:
    """Return the rank that writes each tensor: in their order, the one with the fewest bytes so far."""
    bytes_of = [0] * ranks
    found = []
    for size in sizes:
        rank = min(range(ranks), key=lambda one: (bytes_of[one], one))
        bytes_of[rank] += size
        found.append(rank)
    return found
