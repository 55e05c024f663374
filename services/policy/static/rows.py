"""State of the rows of a running batch on the device, at fixed addresses, and the sampling of a step.

The host writes a row when its sample starts and never reads it; steps read and advance it.

Shapes: S slots, R rows of a step, N new samples, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from services.policy.sample_state import SampleState
from services.policy.sampler import SamplingPlan, device_uniforms, draw


@dataclass(frozen=True, slots=True)
class Rows:
    """Tensors with an entry for each slot."""

    tokens_S: Tensor
    """Newest token."""
    positions_S: Tensor
    """Position of the newest token, which is the column that the next step writes."""
    counts_S: Tensor
    """Number of tokens that were sampled."""
    keys_S: Tensor
    """Key of the random stream, as int64 with the same bits."""
    temperatures_S: Tensor
    """Temperature; 1 for greedy rows."""
    greedy_S: Tensor
    """Whether the most likely token is taken."""
    top_k_S: Tensor
    """Number of tokens kept; the size of the vocabulary for all."""
    top_p_S: Tensor
    """Probability mass kept."""
    sampled_S2: Tensor
    """Newest token and its log-prob, float64, which represents every id exactly."""

    @classmethod
    def empty(cls, slots: int, device: torch.device, *, vocabulary_size: int) -> Rows:
        """Return rows without samples; steps may compute them, too."""

        def filled(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((slots,), value, dtype=dtype, device=device)

        return cls(
            tokens_S=filled(0, torch.int64),
            positions_S=filled(0, torch.int64),
            counts_S=filled(0, torch.int64),
            keys_S=filled(0, torch.int64),
            temperatures_S=filled(1, torch.float32),
            greedy_S=filled(0, torch.bool),
            top_k_S=filled(vocabulary_size, torch.int64),
            top_p_S=filled(1, torch.float64),
            sampled_S2=torch.zeros(slots, 2, dtype=torch.float64, device=device),
        )

    def write(self, first: int, samples: Sequence[SampleState], *, vocabulary_size: int) -> None:
        """Set the rows from `first` on for new samples, whose prompts are computed next.

        The sampling parameters of greedy rows mean the whole distribution at temperature 1.
        """
        rows = slice(first, first + len(samples))
        greedy = [sample.sampling.temperature == 0 for sample in samples]
        values: dict[str, list[float]] = {
            "positions_S": [len(sample.prompt) - 1 for sample in samples],
            "counts_S": [0] * len(samples),
            "keys_S": [_signed(sample.key) for sample in samples],
            "temperatures_S": [sample.sampling.temperature or 1.0 for sample in samples],
            "greedy_S": list(greedy),
            "top_k_S": [
                (not is_greedy and sample.sampling.top_k) or vocabulary_size
                for sample, is_greedy in zip(samples, greedy, strict=True)
            ],
            "top_p_S": [
                1.0 if is_greedy else sample.sampling.top_p
                for sample, is_greedy in zip(samples, greedy, strict=True)
            ],
        }
        for name, new in values.items():
            tensor: Tensor = getattr(self, name)
            tensor[rows] = to_device(torch.tensor(new, dtype=tensor.dtype), tensor.device)

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Copy some rows over others."""
        for each in fields(self):
            tensor: Tensor = getattr(self, each.name)
            tensor[targets] = tensor[sources]

    def draw(self, logits_RV: Tensor, rows: slice, *, is_cut: bool, last_position: int) -> None:
        """Sample the next token of some rows from their logits, and advance them.

        Args:
            logits_RV: logits of the rows.
            rows: the rows.
            is_cut: whether a row keeps only a part of its distribution.
            last_position: largest position; rows whose sample has ended may continue, but not beyond it.
        """
        plan = SamplingPlan(
            temperature=1.0,
            temperatures_B1=self.temperatures_S[rows, None],
            greedy_B=self.greedy_S[rows],
            top_k_B1=self.top_k_S[rows, None] if is_cut else None,
            top_p_B1=self.top_p_S[rows, None] if is_cut else None,
        )
        uniforms_R = device_uniforms(self.keys_S[rows], self.counts_S[rows])
        tokens_R, logprobs_R = draw(logits_RV, plan, uniforms_R)
        self.tokens_S[rows] = tokens_R
        self.sampled_S2[rows] = torch.stack([tokens_R.double(), logprobs_R.double()], dim=1)
        self.counts_S[rows] += 1
        self.positions_S[rows] = (self.positions_S[rows] + 1).clamp(max=last_position)


def cuts(samples: Sequence[SampleState]) -> bool:
    """Return whether a sample keeps only a part of its distribution."""
    return any(
        sample.sampling.temperature != 0 and (sample.sampling.top_k or sample.sampling.top_p < 1)
        for sample in samples
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device without waiting for the work of the device."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _signed(key: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit key."""
    return key - (1 << 64) if key >> 63 else key
