"""Gold and KL of a saved policy on held-out prompts, in this process: the same for both sides."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from benchmarks.against_trl.outcome import Point
from benchmarks.generation import decode
from examples.parcel_help import gold
from fairlead.config import RunConfig
from fairlead.data.control import policy_stop_ids
from fairlead.data.encoding import encode_prompt
from fairlead.errors import ModelLoadError
from fairlead.nn.loading import eos_token_ids, load_causal_lm, load_tokenizer
from fairlead.types import FinishReason, SamplingParams, WeightVersion
from services.policy.decoder import Decoder
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key
from trainer.sequences import TokenSequence, pack, pad, response_logprobs

SEED = 1
_SLOTS = 256
_TOKENS = 16_384
_VERSION = WeightVersion(0, 0)


class Evaluation:
    """Answers to held-out prompts, by any policy that started from the same one."""

    def __init__(self, config: RunConfig, prompts: Sequence[str], *, samples: int) -> None:
        """
        Args:
            config: a run; its policy is where all started.
            prompts: questions that the gold reward knows.
            samples: answers per prompt.
        """
        self._config = config
        self._path = config.policy.path
        self._tokenizer = load_tokenizer(self._path)
        self._prompts = [(text, tuple(encode_prompt(self._tokenizer, text))) for text in prompts]
        self._samples = samples
        self._start = load_causal_lm(self._path, config.policy)

    @property
    def samples(self) -> int:
        """Answers per prompt."""
        return self._samples

    @torch.inference_mode()
    def point(self, folder: Path | None, episodes: int) -> Point:
        """Return gold and KL of the policy with the weights of a folder; None is the one that all start from.

        Raises:
            ModelLoadError: if the folder has other weights.
        """
        model = self._start if folder is None else self._load(folder)
        samples = self._answers(model)
        texts = (text for text, _ in self._prompts for _ in range(self._samples))
        golds = [self._gold(text, sample) for text, sample in zip(texts, samples, strict=True)]
        own = sum(sum(sample.logprobs) for sample in samples)
        start = self._start_logprobs(samples)
        return Point(episodes, statistics.fmean(golds), (own - start) / len(samples))

    def _load(self, folder: Path) -> PreTrainedModel:
        model = load_causal_lm(self._path, self._config.policy)
        files = sorted(folder.glob("*.safetensors"))
        tensors = dict(itertools.chain.from_iterable(load_file(file).items() for file in files))
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        tied = set(model.all_tied_weights_keys)
        if unexpected or set(missing) - tied or not tensors:
            raise ModelLoadError(f"{folder} has not the weights of a policy that started from {self._path}")
        return model

    def _answers(self, model: PreTrainedModel) -> list[SampleState]:
        stop_ids = eos_token_ids(model, self._tokenizer) | policy_stop_ids(self._tokenizer)
        sampling = SamplingParams(max_new_tokens=self._config.sampling.max_new_tokens, seed=SEED)
        samples = [
            SampleState(ids, sampling, stream_key(SEED, number), stop_ids, limit=sampling.max_new_tokens)
            for number, ids in enumerate(ids for _, ids in self._prompts for _ in range(self._samples))
        ]
        decode(Decoder(model, slots=_SLOTS), samples, _VERSION)
        return samples

    def _gold(self, prompt: str, sample: SampleState) -> float:
        text = self._tokenizer.decode(
            sample.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return gold.reward(prompt, str(text), ended=sample.finish_reason is FinishReason.STOP)

    def _start_logprobs(self, samples: Sequence[SampleState]) -> float:
        """Return the sum of the log-probs of all answers under the policy that all start from."""
        sequences = [
            TokenSequence((*sample.prompt, *sample.token_ids), len(sample.prompt)) for sample in samples
        ]
        total = 0.0
        for group in pack([len(one.token_ids) for one in sequences], max_tokens=_TOKENS):
            batch = pad([sequences[index] for index in group], torch.device("cpu"))
            total += float(response_logprobs(self._start, batch, temperature=1.0).double().sum())
        return total
