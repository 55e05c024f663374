"""Matrices divided within a layer: tensor parallelism by the plan that transformers has for an architecture.

`divide` replaces every parameter by a DTensor on the dimension `tp` of the mesh: parts of matrices as the
plan says, the vocabulary of embedding and output layer, and everything else whole on every rank. FSDP then
divides the parts by rows. All ranks of that dimension read the same sequences. Knows no stage and no loss.

Shapes: B sequences, T positions, H hidden, V the whole vocabulary, v this rank's part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from transformers import PreTrainedModel
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

from fairlead.errors import ConfigError
from fairlead.nn.attention_heads import check_heads
from trainer.distributed.blocks import rows_of

KEY = "ranks.tensor_parallel"

_COLUMNS = ("colwise", "colwise_gather_output", "colwise_rep")
_ROWS = ("rowwise", "rowwise_split_input", "rowwise_rep")
_WHOLE_WITH_OWN_HEADS = "replicated_with_grad_allreduce"
"""Norms of single heads: each rank computes the gradient of its heads only."""
_STYLES = (*_COLUMNS, *_ROWS, _WHOLE_WITH_OWN_HEADS)
WHOLE = Replicate()
"""A tensor that every rank has whole."""
_ADAPTER = "default"
"""peft's name of the only adapter."""


def divide(root: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the models in a module, with adapters or without, among the ranks of a mesh of one dimension.

    Parameters may be on the meta device. Tied weights stay tied; what is outside of a model, such as a head,
    is whole on every rank.

    Raises:
        ConfigError: if transformers has no plan for the architecture or one with other kinds of division, or
            if the number of ranks does not divide its attention heads.
    """
    found = _Divided(mesh)
    own_heads: set[int] = set()
    for model in _models(root):
        plan = _plan(model)
        _check(model, plan, mesh.size())
        for module in _vocabulary(model):
            found.replace(module, weight=Shard(0), bias=Shard(0))
            if isinstance(module, nn.Embedding):
                _look_up_in_parts(module, mesh)
            else:
                ALL_PARALLEL_STYLES["colwise"].install_forward(module, mesh)
        for module, style in _matrices(model, plan):
            is_column = style in _COLUMNS
            found.replace(module, weight=Shard(0 if is_column else 1), bias=Shard(0) if is_column else WHOLE)
            ALL_PARALLEL_STYLES[style].install_forward(module, mesh)
        modules = dict(model.named_modules())
        own_heads |= {id(modules[name]) for name, style in plan.items() if style == _WHOLE_WITH_OWN_HEADS}
    for module in root.modules():
        if any(not isinstance(one, DTensor) for one in module.parameters(recurse=False)):
            found.replace(module)
            _compute_locally(module, Partial() if id(module) in own_heads else WHOLE)


class _Divided:
    """Parameters of a mesh of one dimension, each made once, in place of whole ones."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        self._made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def replace(self, module: nn.Module, **placement_of: Placement) -> None:
        """Replace the parameters of a module itself; those without a placement are whole on every rank."""
        for name, whole in list(module.named_parameters(recurse=False)):
            if not isinstance(whole, DTensor):
                # The whole one is kept until the end, so that its id stays its own.
                made = self._made.get(id(whole), (whole, whole))[1]
                if made is whole:
                    made = self._divided(whole, placement_of.get(name, WHOLE))
                    self._made[id(whole)] = whole, made
                module.register_parameter(name, made)

    def _divided(self, whole: nn.Parameter, placement: Placement) -> nn.Parameter:
        data = whole.detach()
        part = DTensor.from_local(
            _own_part(data, self._mesh, placement),
            self._mesh,
            [placement],
            run_check=False,
            shape=data.shape,
            stride=data.stride(),
        )
        return nn.Parameter(part, requires_grad=whole.requires_grad)


def _compute_locally(module: nn.Module, gradient: Placement) -> None:
    """Let a module compute with its own part of its parameters.

    Args:
        module: its inputs and outputs are ordinary tensors.
        gradient: what this rank's gradient is: the whole (`Replicate`), a summand (`Partial`) or a part.
    """
    forward = module.forward
    parameters: dict[str, Any] = module._parameters

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # of any module
        kept = {name: one for name, one in parameters.items() if isinstance(one, DTensor)}
        # A tensor in place of a parameter, so that its gradient reaches the parameter.
        parameters.update({name: one.to_local(grad_placements=[gradient]) for name, one in kept.items()})
        try:
            return forward(*args, **kwargs)
        finally:
            parameters.update(kept)

    module.forward = run


def _own_part(tensor: Tensor, mesh: DeviceMesh, placement: Placement) -> Tensor:
    """Return what this rank holds of a whole tensor, as a copy."""
    if not isinstance(placement, Shard):
        return tensor
    parts = torch.chunk(tensor, mesh.size(), placement.dim)
    part = mesh.get_local_rank()
    if part < len(parts):
        return parts[part].clone(memory_format=torch.contiguous_format)
    return tensor.narrow(placement.dim, 0, 0).clone()


def _models(module: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the outermost models in a module."""
    if isinstance(module, PreTrainedModel):
        yield module
        return
    for child in module.children():
        yield from _models(child)


def _plan(model: PreTrainedModel) -> dict[str, str]:
    """Return the style of every module that transformers' plan names, but for those of the vocabulary."""
    generic: dict[str, str] = dict(model.tp_plan)
    others = list(_vocabulary(model))
    return {
        name: generic[key]
        for name, module in model.named_modules()
        if module not in others and (key := re.sub(r"\.\d+(?=\.|$)", ".*", name)) in generic
    }


def _check(model: PreTrainedModel, plan: dict[str, str], ranks: int) -> None:
    name = type(model).__name__
    styles = {style for style in plan.values() if style not in _STYLES}
    if not plan or styles:
        why = f"divides layers in other ways ({', '.join(sorted(styles))})" if styles else "does not exist"
        raise ConfigError(
            KEY,
            got=f"{ranks}, but transformers' plan of tensor parallelism for {name} {why}",
            allowed="1: FSDP divides every architecture",
        )
    config = model.config.get_text_config()
    attention, key_value = (
        getattr(config, key, None) for key in ("num_attention_heads", "num_key_value_heads")
    )
    check_heads(ranks, attention=attention, key_value=key_value, model=name, field=KEY)


def _vocabulary(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Yield the modules whose weight has a row for each token of the vocabulary."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in (model.get_input_embeddings(), head):
        if isinstance(module, nn.Embedding | nn.Linear):
            yield module


def _matrices(model: PreTrainedModel, plan: dict[str, str]) -> Iterator[tuple[nn.Module, str]]:
    """Yield the linear layers of the plan with their styles; of a layer with an adapter, its three layers."""
    for name, module in model.named_modules():
        style = plan.get(name)
        if style is None or style == _WHOLE_WITH_OWN_HEADS:
            continue
        base = getattr(module, "base_layer", None)
        yield (module if base is None else base), style
        if base is not None and style == "colwise":
            yield module.lora_B[_ADAPTER], style
        if base is not None and style == "rowwise":
            yield module.lora_A[_ADAPTER], style


def _look_up_in_parts(embedding: nn.Embedding, mesh: DeviceMesh) -> None:
    """Let an embedding look up the tokens of this rank's rows, and add what the others found.

    Of any subclass that is linear in the weight, such as one that scales its output.
    """
    first, end = rows_of(mesh.get_local_rank(), embedding.num_embeddings, ranks=mesh.size())
    if embedding.padding_idx is not None:  # its row has no gradient
        is_own = first <= embedding.padding_idx < end
        embedding.padding_idx = embedding.padding_idx - first if is_own else None
    _compute_locally(embedding, Shard(0))
    look_up = embedding.forward

    def forward(tokens_BT: Tensor) -> Tensor:
        is_own_BT = (tokens_BT >= first) & (tokens_BT < end)
        found_BTH = look_up((tokens_BT - first).clamp(0, max(0, end - first - 1)))
        found_BTH = torch.where(is_own_BT.unsqueeze(-1), found_BTH, 0)
        summands = DTensor.from_local(found_BTH, mesh, [Partial()], run_check=False)
        whole: Tensor = summands.redistribute(placements=[Replicate()]).to_local()
        return whole

    embedding.forward = forward  # type: ignore[method-assign, assignment]
