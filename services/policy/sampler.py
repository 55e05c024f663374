"""Draw tokens from logits by inverting the cumulative distribution, with one random stream per sample.

A draw depends only on the sample's key and the token's position, never on the rest of the batch: the uniform
number is a hash of the two (SplitMix64, Steele et al. 2014). Knows nothing about models or sequences.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairlead.nn.logprobs import token_logprobs
from fairlead.types import SamplingParams

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def stream_key(seed: int, sample: int) -> int:
    """Return the 64-bit key of the random stream of one sample of a request."""
    text = f"{seed}:{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniforms(keys_B: npt.NDArray[np.uint64], positions_B: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) with 53 random bits for each (key, position)."""
    mixed_B = keys_B + (positions_B + np.uint64(1)) * _GOLDEN
    mixed_B = (mixed_B ^ (mixed_B >> np.uint64(30))) * _MIX_1
    mixed_B = (mixed_B ^ (mixed_B >> np.uint64(27))) * _MIX_2
    mixed_B ^= mixed_B >> np.uint64(31)
    numbers_B: npt.NDArray[np.float64] = (mixed_B >> np.uint64(11)) * 2.0**-53
    return numbers_B


def device_uniforms(keys_B: Tensor, positions_B: Tensor) -> Tensor:
    """Return the numbers of `uniforms`, computed on the device of the arguments.

    Args:
        keys_B: keys, int64 with the bits of the unsigned ones.
        positions_B: positions, int64.

    Returns:
        float64 [B].
    """
    golden, mix_1, mix_2 = (int(constant.view(np.int64)) for constant in (_GOLDEN, _MIX_1, _MIX_2))
    mixed_B = keys_B + (positions_B + 1) * golden
    mixed_B = (mixed_B ^ _shifted(mixed_B, 30)) * mix_1
    mixed_B = (mixed_B ^ _shifted(mixed_B, 27)) * mix_2
    mixed_B = mixed_B ^ _shifted(mixed_B, 31)
    return _shifted(mixed_B, 11).double() * 2.0**-53


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right as if it were unsigned; torch has few operations for uint64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling parameters of the rows of a batch, as tensors; rebuilt when rows are added or removed."""

    temperature: float
    """Temperature of all rows; 1 if `temperatures_B1` is set."""
    temperatures_B1: Tensor | None
    """Temperature of each row, if they differ; greedy rows have 1."""
    greedy_B: Tensor | None
    """Whether a row takes the most likely token; None if no row does."""
    top_k_B1: Tensor | None
    """Number of tokens kept in each row; None if no row truncates its distribution."""
    top_p_B1: Tensor | None
    """Probability mass kept in each row; None if no row truncates its distribution."""

    @classmethod
    def of(
        cls, rows: Sequence[SamplingParams], *, vocabulary_size: int, device: torch.device
    ) -> SamplingPlan:
        """Build the plan of some rows."""
        temperatures = [row.temperature or 1.0 for row in rows]
        greedy = [row.temperature == 0 for row in rows]
        # The log-prob of a greedy row is that of the whole distribution at temperature 1.
        top_k = [0 if row.temperature == 0 else row.top_k for row in rows]
        top_p = [1.0 if row.temperature == 0 else row.top_p for row in rows]
        same = len(set(temperatures)) == 1
        cut = any(top_k) or any(mass < 1 for mass in top_p)

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)

        return cls(
            temperature=temperatures[0] if same else 1.0,
            temperatures_B1=None if same else column(temperatures, torch.float32),
            greedy_B=torch.tensor(greedy, device=device) if any(greedy) else None,
            top_k_B1=column([k or vocabulary_size for k in top_k], torch.int64) if cut else None,
            top_p_B1=column(top_p, torch.float64) if cut else None,
        )


def draw(logits_BV: Tensor, plan: SamplingPlan, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token for each row, with its log-prob under the distribution it was drawn from.

    Args:
        logits_BV: logits of any float type.
        plan: sampling parameters of each row.
        uniforms_B: random numbers, float64 in [0, 1).

    Returns:
        Tokens, int64 [B], and log-probs, float32 [B].
    """
    if plan.temperatures_B1 is not None:
        scaled_BV = logits_BV.float() / plan.temperatures_B1
    elif plan.temperature != 1.0:
        scaled_BV = logits_BV.float() / plan.temperature
    else:
        scaled_BV = logits_BV.float()
    if plan.top_k_B1 is not None and plan.top_p_B1 is not None:
        scaled_BV = truncate(scaled_BV, plan.top_k_B1, plan.top_p_B1)
    cumulative_BV = scaled_BV.softmax(-1).cumsum(-1, dtype=torch.float64)
    total_B = cumulative_BV[:, -1]
    # Strictly below the total; otherwise rounding could select an index past the last token with any mass.
    point_B = torch.minimum(uniforms_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    tokens_B = torch.searchsorted(cumulative_BV, point_B.unsqueeze(1), right=True).squeeze(1)
    if plan.greedy_B is not None:
        tokens_B = torch.where(plan.greedy_B, logits_BV.argmax(-1), tokens_B)
    # A row of NaN selects no valid index; the caller notices by its log-prob, which is NaN too.
    tokens_B = tokens_B.clamp_(max=logits_BV.shape[-1] - 1)
    return tokens_B, token_logprobs(scaled_BV, tokens_B, temperature=1.0)


def truncate(scaled_BV: Tensor, top_k_B1: Tensor, top_p_B1: Tensor) -> Tensor:
    """Return logits with −∞ for all but the top_k most likely tokens and, of those, the smallest set reaching
    top_p.

    Among equally likely tokens, lower ids are kept.
    """
    sorted_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    ranks_V = torch.arange(scaled_BV.shape[-1], device=scaled_BV.device)
    sorted_BV = sorted_BV.masked_fill(ranks_V >= top_k_B1, float("-inf"))
    probabilities_BV = sorted_BV.softmax(-1, dtype=torch.float64)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    sorted_BV = sorted_BV.masked_fill((before_BV >= top_p_B1) & (top_p_B1 < 1), float("-inf"))
    return torch.empty_like(scaled_BV).scatter_(-1, order_BV, sorted_BV)
