"""The moving average of the policy's weights over optimizer steps (Ouyang et al. 2022, appendix C.4).

A copy of the trained tensors, divided as they are; part of the checkpoint, and written as a model of its own
at the end of a run. Rollouts come from the policy itself, never from the average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairlead.errors import CorruptCheckpoint
from trainer.distributed.sharding import local
from trainer.distributed.slices import rows_for, shape_of
from trainer.model_state import trained_tensors


class WeightAverage:
    """The average of one model's trained tensors; of a model with adapters, of the adapters."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        """Begin with the present weights.

        Args:
            model: divided among the ranks.
            decay: share of the average that a step keeps.
        """
        self._model = model
        self._decay = decay
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()
        }
        """The averages by the names of the tensors."""

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights: decay·average + (1 − decay)·weights."""
        for average, weights in self._pairs():
            if average.is_floating_point():
                average.lerp_(weights, 1 - self._decay)
            else:
                average.copy_(weights)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor] | None) -> None:
        """Restore the average of a checkpoint; None: begin with the present weights.

        Raises:
            CorruptCheckpoint: if names or shapes do not match.
        """
        if tensors is None:
            for average, weights in self._pairs():
                average.copy_(weights)
            return
        own = self.tensors
        if set(own) != set(tensors) or any(tuple(own[name].shape) != shape_of(tensors, name) for name in own):
            raise CorruptCheckpoint("the average of the checkpoint has another architecture than the policy")
        for name, average in own.items():
            local(average).copy_(rows_for(average, tensors, name))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model for a while, one tensor at a time."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weights in self._pairs():
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name, weights in trained_tensors(self._model).items():
            yield local(self.tensors[name]), local(weights)
