"""Check, when a model is loaded, that the decoder computes what the model's own forward pass computes.

Any causal language model works whose only state is keys and values; others keep more state (convolutions,
recurrences).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fairlead.errors import ModelLoadError
from fairlead.nn import trial
from fairlead.nn.logprobs import token_logprobs
from fairlead.nn.trial import Comparison, Probe
from fairlead.types import SamplingParams, WeightVersion
from services.policy.decoder import Decoder
from services.policy.running_batch import RunningBatch
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key

_VERSION = WeightVersion(0, 0)


def check_cache(model: PreTrainedModel, *, longest: int) -> None:
    """Compare the log-probs of a few samples with those of plain forward passes.

    The samples have prompts of different length, and one joins while others run and another leaves.

    Args:
        model: the model.
        longest: tokens of the longest sequence that will be decoded.

    Raises:
        ModelLoadError: if they differ, because the architecture keeps state that the slot cache does not
            store, or computes padded rows differently.
    """
    reason = obstacle(model, lambda slots: Decoder(model, slots=slots), longest=longest)
    if reason:
        raise ModelLoadError(
            f"{type(model).__name__} cannot be decoded with a cache of only keys and values ({reason})"
        )


def obstacle(model: PreTrainedModel, batch: Callable[[int], RunningBatch], *, longest: int) -> str:
    """Return why a model cannot be decoded in some way; empty if it can.

    Args:
        model: the model.
        batch: returns an empty running batch of the model with a number of slots.
        longest: tokens of the longest sequence that will be decoded.
    """
    return trial.obstacle(model, lambda probe: _comparisons(model, batch, probe), longest=longest)


def _comparisons(
    model: PreTrainedModel, batch: Callable[[int], RunningBatch], probe: Probe
) -> Iterator[Comparison]:
    prompts = [probe.ids(3), probe.long_ids(6), probe.ids(4)]
    samples = [
        SampleState(prompt, SamplingParams(), stream_key(0, index), frozenset(), limit=6)
        for index, prompt in enumerate(prompts)
    ]
    decoder = batch(3)
    decoder.add(samples[:2], _VERSION)
    decoder.step(_VERSION)
    decoder.add(samples[2:], _VERSION)
    decoder.step(_VERSION)
    decoder.remove(samples[:1])
    for _ in range(3):
        decoder.step(_VERSION)
    for sample in samples:
        elsewhere = (*probe.ids(len(sample.prompt) - 1), sample.prompt[-1])
        yield Comparison(
            torch.tensor(sample.logprobs),
            _logprobs(model, sample.prompt, sample.token_ids),
            _logprobs(model, elsewhere, sample.token_ids),
        )


def _logprobs(model: PreTrainedModel, prompt: tuple[int, ...], response: list[int]) -> Tensor:
    logits_TV = trial.own(model, (*prompt, *response), count=len(response) + 1)[:-1]
    return token_logprobs(logits_TV, torch.tensor(response, device=logits_TV.device), temperature=1.0).cpu()
