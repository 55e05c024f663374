"""Gold, KL and score of a saved policy on held-out prompts, in this process: the same for every policy."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from benchmarks.parcel_task import answers
from examples.parcel_help import gold
from fairlead.config import RunConfig
from fairlead.data.encoding import encode_prompt
from fairlead.errors import ModelLoadError
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from fairlead.nn.reward_model import load_reward_model
from services.policy.sample_state import SampleState
from trainer.sequences import TokenSequence, pack, pad, response_logprobs

SEED = 1
_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A policy on held-out prompts."""

    golds: tuple[tuple[float, ...], ...]
    """Gold rewards of the answers to each prompt."""
    kl: float
    """KL to the policy that all start from, nats per answer."""
    score: float
    """Mean score of the reward model; NaN if none was given."""
    words: float
    """Mean length of an answer."""

    @property
    def gold(self) -> float:
        """Mean gold reward."""
        return statistics.fmean(itertools.chain.from_iterable(self.golds))


class Evaluation:
    """Answers to held-out prompts, by any policy that started from the same one."""

    def __init__(
        self, config: RunConfig, prompts: Sequence[str], *, samples: int, reward_model: Path | None = None
    ) -> None:
        """
        Args:
            config: a run; its policy is where all started.
            prompts: questions that the gold reward knows.
            samples: answers per prompt.
            reward_model: scores the answers too.
        """
        self._config = config
        self._path = config.policy.path
        self._tokenizer = load_tokenizer(self._path)
        self._prompts = [(text, tuple(encode_prompt(self._tokenizer, text))) for text in prompts]
        self._samples = samples
        self._start = load_causal_lm(self._path, config.policy)
        self._reward = None if reward_model is None else load_reward_model(str(reward_model), config.reward)

    @property
    def samples(self) -> int:
        """Answers per prompt."""
        return self._samples

    @torch.inference_mode()
    def evaluated(self, folder: Path | None) -> Evaluated:
        """Return the figures of the policy with the weights of a folder; None is the one that all start from.

        Raises:
            ModelLoadError: if the folder has other weights.
        """
        model = self._start if folder is None else self._load(folder)
        samples = self._answers(model)
        starts = range(0, len(samples), self._samples)
        groups = [
            [
                (answers.text_of(each, self._tokenizer), answers.ended(each))
                for each in samples[start:][: self._samples]
            ]
            for start in starts
        ]
        own = sum(sum(sample.logprobs) for sample in samples)
        return Evaluated(
            golds=tuple(
                tuple(gold.reward(prompt, text, ended=ended) for text, ended in group)
                for (prompt, _), group in zip(self._prompts, groups, strict=True)
            ),
            kl=(own - self._start_logprobs(samples)) / len(samples),
            score=self._score(samples),
            words=statistics.fmean(len(text.split()) for group in groups for text, _ in group),
        )

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
        return answers.draw(
            model,
            self._tokenizer,
            [ids for _, ids in self._prompts],
            samples=self._samples,
            max_new_tokens=self._config.sampling.max_new_tokens,
            seed=SEED,
        )

    def _start_logprobs(self, samples: Sequence[SampleState]) -> float:
        """Return the sum of the log-probs of all answers under the policy that all start from."""
        sequences = [TokenSequence((*each.prompt, *each.token_ids), len(each.prompt)) for each in samples]
        total = 0.0
        for group in pack([len(one.token_ids) for one in sequences], max_tokens=_TOKENS):
            batch = pad([sequences[index] for index in group], torch.device("cpu"))
            total += float(response_logprobs(self._start, batch, temperature=1.0).double().sum())
        return total

    def _score(self, samples: Sequence[SampleState]) -> float:
        """Return the mean score; an answer that was cut off is read with an end, as by the reward service."""
        if self._reward is None:
            return math.nan
        end = self._tokenizer.eos_token_id
        whole = [
            (*each.prompt, *each.token_ids, *(() if each.token_ids[-1] == end else (end,)))
            for each in samples
        ]
        total = 0.0
        for group in pack([len(ids) for ids in whole], max_tokens=_TOKENS):
            rows = [torch.tensor(whole[index]) for index in group]
            lengths_B = torch.tensor([len(row) for row in rows])
            tokens_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            total += float(self._reward.scores(tokens_BT, lengths_B).double().sum())
        return total / len(samples)
