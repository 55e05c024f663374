"""Log-probs that the embedded engine records, against those of a plain forward pass and of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import generation
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.generation import VERSION, answers, batches
from benchmarks.gpu_check.setting import Setting
from services.policy.sample_state import SampleState
from trainer.sequences import PaddedSequences, TokenSequence, pad, response_logprobs


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield mean and largest difference for each model and each way of decoding."""
    for name in setting.models:
        yield from _differences(setting, name)


def _differences(setting: Setting, name: str) -> Iterator[Figure]:
    exact = setting.model(name, dtype=torch.float32)
    served = setting.model(name, dtype=setting.torch_dtype)
    others = {
        f"forward pass in {setting.dtype}": (served, torch.float32),
        "trainer": (exact, setting.torch_dtype),
        "forward pass in float32": (exact, torch.float32),
    }
    for what, build in batches(served, longest=128):
        samples = answers(setting.pick(32, 3), setting.pick(64, 8))
        generation.decode(build(len(samples)), samples, VERSION)
        for other, (model, autocast) in others.items():
            difference = _difference(setting, samples, partial(_logprobs, model, dtype=autocast))
            note = f"largest {difference.max():.3g}, of {len(difference)} tokens"
            yield Figure(f"{name}, {what} against {other}: mean", float(difference.mean()), "nats", note)


def _logprobs(model: PreTrainedModel, batch: PaddedSequences, *, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        return response_logprobs(model, batch, temperature=1.0, dtype=dtype)


def _difference(
    setting: Setting, samples: Sequence[SampleState], compute: Callable[[PaddedSequences], Tensor]
) -> Tensor:
    """Return |recorded − computed| of every token."""
    sequences = [TokenSequence((*sample.prompt, *sample.token_ids), len(sample.prompt)) for sample in samples]
    recorded = torch.tensor([value for sample in samples for value in sample.logprobs])
    return (recorded - compute(pad(sequences, setting.device)).float().cpu()).abs()
