"""CUDA graphs on a CPU, for tests: operations of a function are recorded, and replayed on the same memory.

As on a GPU, recording changes nothing, a value that the host reads cannot be recorded, and everything that
the host computes is a constant of all replays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READ_BY_THE_HOST = {
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::is_nonzero",
}


@dataclass
class _Recording(TorchDispatchMode):
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = field(default_factory=list)
    before: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in _READ_BY_THE_HOST:
            raise RuntimeError(f"{func._schema.name} is not permitted when a stream is capturing")
        for value, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((value, value.clone()))
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(result)))
        return result


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Implement `Record` on a CPU."""
    with _Recording() as recording:
        step()
    for tensor, value in reversed(recording.before):
        tensor.copy_(value)

    @torch.inference_mode()
    def replay() -> None:
        for func, args, kwargs, results in recording.calls:
            for result, new in zip(results, tree_leaves(func(*args, **kwargs)), strict=True):
                # Results that share memory with arguments have their new values already.
                if isinstance(result, Tensor) and result.data_ptr() != new.data_ptr():
                    result.copy_(new)

    return replay
