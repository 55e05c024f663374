"""Test whether an architecture supports a way of running it, before relying on it.

A way is compared with the model's own forward pass over one sequence: no padding, no cache, no positions
given. Differences are measured against the effect of the context, because the size of a model's values
depends on its weights: attention to a wrong token has an effect of that order in any model, rounding is far
below it. An error from the architecture's code, which is not ours, means that the way is not supported, not
that something failed.

Shapes: those of the values that a way computes.
"""

from __future__ import annotations

import inspect
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from fairlead.nn.loading import vocabulary_size

Ids = tuple[int, ...]

UNFIT = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that models of transformers raise for arguments, caches and attention that they do not support."""

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.25
"""Largest accepted difference, as a share of the effect of the context; the second for bfloat16. Tiny models
of the 100 causal architectures of transformers 5.23 that can be made so small differ by at most 1.2e-4 (0.11)
where a way is right, SmolLM2-135M by 3e-5 (0.13), and by 3e-3 to 100 where it is not."""
_DRAWS = 3
"""Rounding is amplified by some ids, such as special tokens that were never trained; a wrong way is wrong for
all."""
_SMALLEST_EFFECT = 1e-2
"""Of the largest value; a model that ignores its context is compared by its values."""
_SHORT_SPAN = 4
_SPAN = re.compile(r"(sliding_|attention_|keep_)?window(_size)?|attention_chunk_size|local_attention")
"""Names of the settings that limit how far back attention reaches."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Values of one sequence."""

    found: Tensor
    """Computed in the tried way."""
    expected: Tensor
    """Computed by the model's own forward pass."""
    elsewhere: Tensor
    """Computed by the model's own forward pass after a different context."""

    @property
    def difference(self) -> float:
        """Largest difference of found and expected, as a share of the effect of the context."""
        expected = self.expected.double()
        effect = (self.elsewhere.double() - expected).abs().max()
        effect = effect.clamp(min=float(expected.abs().max()) * _SMALLEST_EFFECT)
        return float((self.found.double() - expected).abs().max() / effect.clamp(min=1e-30))


class Probe:
    """Draws the ids that both ways compute."""

    def __init__(self, vocabulary_size: int, *, seed: int, beyond: int = 0) -> None:
        """
        Args:
            vocabulary_size: rows of the embedding. Ids come from the middle of the vocabulary, because
                special and unused tokens are at its ends.
            seed: of the ids.
            beyond: tokens that a long sequence has in addition, to be longer than the model's attention.
        """
        self._random = random.Random(seed)
        self._ids = range(vocabulary_size // 4, max(vocabulary_size * 3 // 4, vocabulary_size // 4 + 1))
        self._beyond = beyond

    def ids(self, length: int) -> Ids:
        """Return that many ids."""
        return tuple(self._random.choices(self._ids, k=length))

    def long_ids(self, length: int) -> Ids:
        """Return ids of which the last `length` are after all that attention reaches from the first."""
        return self.ids(length + self._beyond)


Trial = Callable[[Probe], Iterable[Comparison]]
"""Runs a model in the tried way, and with its own forward pass."""


@torch.no_grad()
def obstacle(model: PreTrainedModel, trial: Trial, *, longest: int) -> str:
    """Return why a model cannot be run in the tried way; empty if it can.

    Args:
        model: the model that `trial` runs.
        trial: compares the tried way with the model's own forward pass, with sequences longer than 8 tokens.
        longest: tokens of the longest sequence that will be run. If the model's attention reaches less far,
            it is tried with an attention that is shorter still, or else with sequences that are longer.
    """
    try:
        reason = _difference(model, trial, beyond=0)
        spans = {} if reason else _spans(model.config, longest)
        if not spans:
            return reason
        before = _own_values(model)
        with _shortened(model.config, spans):
            if Comparison(_own_values(model)[0], *before).difference > _tolerance(model):
                return _difference(model, trial, beyond=0)
        return _difference(model, trial, beyond=max(spans.values()))
    except UNFIT as error:
        return f"{type(error).__name__}: {error}"


def _difference(model: PreTrainedModel, trial: Trial, *, beyond: int) -> str:
    size = vocabulary_size(model)
    differences: list[float] = []
    while len(differences) < _DRAWS:
        probe = Probe(size, seed=len(differences), beyond=beyond)
        differences.append(_worst(comparison.difference for comparison in trial(probe)))
        if differences[-1] <= _tolerance(model):
            return ""
    return f"its values differ by {min(differences):.2g} of the effect of the context"


def _worst(differences: Iterable[float]) -> float:
    """Return the largest; NaN counts as infinite."""
    return max(float("inf") if math.isnan(found) else found for found in differences)


def _tolerance(model: PreTrainedModel) -> float:
    return _TOLERANCE.get(model.dtype, _COARSE_TOLERANCE)


def _spans(config: PreTrainedConfig, longest: int) -> dict[str, int]:
    """Return the settings that limit attention to fewer tokens than the longest sequence has."""
    kinds = getattr(config, "layer_types", None)
    if kinds and set(kinds) == {"full_attention"}:
        return {}
    values = {name: getattr(config, name, None) for name in vars(config) if _SPAN.fullmatch(name)}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < longest
    }


@contextmanager
def _shortened(config: PreTrainedConfig, spans: dict[str, int]) -> Iterator[None]:
    """Let attention reach a few tokens only. Most architectures read it with each forward pass."""
    try:
        for name in spans:
            setattr(config, name, _SHORT_SPAN)
        yield
    finally:
        for name, value in spans.items():
            setattr(config, name, value)


def _own_values(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return the last values of two contexts, by the model's own forward pass."""
    probe = Probe(vocabulary_size(model), seed=0)
    last = probe.ids(1)
    first, second = (own(model, (*probe.ids(3 * _SHORT_SPAN), *last), count=1) for _ in range(2))
    return first, second


def own(model: PreTrainedModel, ids: Ids, *, count: int) -> Tensor:
    """Return what the model's own forward pass computes at the last `count` positions of a sequence."""
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    last_only = {"logits_to_keep": count} if keeps else {}
    ids_1T = torch.tensor([ids], device=model.device)
    found: Tensor = model(input_ids=ids_1T, use_cache=False, **last_only)[0]
    return found[0, -count:]
