"""Read answers with a language model: the log-prob of each, and features of what the model makes of it.

One forward pass gives both. The features are those that a judge is trained on.

Shapes: N answers, F features, H hidden.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.helpful_harmless import kept
from fairlead.config.base import ComputeSection
from fairlead.data.chat import Prompt
from fairlead.data.encoding import encode_answer
from fairlead.nn.loading import load_causal_lm, load_tokenizer, set_threads, torch_dtype
from fairlead.nn.logprobs import hidden_logprobs
from fairlead.nn.unembedding import output_layer
from trainer.sequences import (
    PaddedSequences,
    TokenSequence,
    autocast,
    overhead_tokens,
    pack,
    pad,
    predictor_hidden,
)

Answer = tuple[Prompt, str]
"""A prompt and an answer to it."""
MAX_TOKENS = 256
"""Longest sequence; a longer one loses the beginning of its prompt, then the end of its answer."""
_BATCH_TOKENS = 2_048

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Readings:
    """What a model makes of answers, in their order."""

    logprobs_N: NDArray[np.float64]
    """Log-prob of each whole answer given its prompt, with its end."""
    tokens_N: NDArray[np.float64]
    """Tokens of each answer."""
    features_NF: NDArray[np.float64]
    """Mean and last of the hidden states that predict its tokens, F = 2H."""

    @property
    def mean_logprobs(self) -> NDArray[np.float64]:
        """Log-prob of each answer per token, [N]."""
        return self.logprobs_N / self.tokens_N

    def at(self, indices: Sequence[int]) -> Readings:
        """Return the readings of some answers, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Readings(self.logprobs_N[chosen], self.tokens_N[chosen], self.features_NF[chosen])


def read_groups(
    path: str, groups: Mapping[str, Sequence[Answer]], section: ComputeSection
) -> dict[str, Readings]:
    """Return the result of `read` for several groups of answers; the model is loaded once."""
    found = read(path, [answer for members in groups.values() for answer in members], section)
    places = iter(range(len(found.tokens_N)))
    return {name: found.at([next(places) for _ in members]) for name, members in groups.items()}


def kept_readings(
    file: Path, path: str, groups: Mapping[str, Sequence[Answer]], section: ComputeSection
) -> dict[str, Readings]:
    """Return the result of `read_groups`, from a file if it has that of the same model and answers; else it
    is written there.

    Raises:
        ModelLoadError: if the model cannot be loaded.
    """
    texts = {name: [(str(prompt), text) for prompt, text in members] for name, members in groups.items()}
    digest = digest_of(path, section, texts)
    found = load_readings(file, digest)
    if found is None:
        logger.info("reading %d answers with the untuned model", sum(map(len, groups.values())))
        found = read_groups(path, groups, section)
        save_readings(file, digest, found)
    return found


def digest_of(path: str, section: ComputeSection, texts: object) -> str:
    """Return a digest of a model, its dtype and the texts that it reads, by which results are kept."""
    return blake2b(json.dumps([path, section.dtype, texts]).encode()).hexdigest()


def save_readings(file: Path, digest: str, groups: Mapping[str, Readings]) -> None:
    """Write readings to a file, with the digest of what they are of."""
    arrays = {
        f"{name}.{one.name}": getattr(readings, one.name)
        for name, readings in groups.items()
        for one in fields(readings)
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with unfinished.open("wb") as out:
        np.savez(out, digest=np.array(digest), **arrays)
    unfinished.replace(file)


def load_readings(file: Path, digest: str) -> dict[str, Readings] | None:
    """Return the readings in a file; None if there is none, it is of something else, or it is damaged."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened, np.load(opened) as arrays:
            if str(arrays["digest"]) != digest:
                return None
            names = dict.fromkeys(key.partition(".")[0] for key in arrays.files if "." in key)
            return {
                name: Readings(*(arrays[f"{name}.{one.name}"] for one in fields(Readings))) for name in names
            }
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        kept.warn(file, error)
        return None


@dataclass(frozen=True, slots=True)
class Reader:
    """A language model that reads token sequences."""

    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    model: PreTrainedModel
    """The model in float32."""
    dtype: torch.dtype
    """What it computes in."""

    @classmethod
    def load(cls, path: str, section: ComputeSection) -> Reader:
        """Load a model with the device, dtype and threads of a section.

        Raises:
            ModelLoadError: if the model cannot be loaded.
        """
        set_threads(section)
        model = load_causal_lm(path, section.model_copy(update={"dtype": "float32"}))
        return cls(load_tokenizer(path), model, torch_dtype(section))

    def hidden_states(
        self, sequences: Sequence[TokenSequence]
    ) -> Iterator[tuple[list[int], PaddedSequences, Tensor]]:
        """Read sequences in batches; yield the indices of each, the batch, and its `predictor_hidden`."""
        body, device = self.model.base_model, self.model.device
        assert isinstance(body, PreTrainedModel)
        lengths = [len(sequence.token_ids) for sequence in sequences]
        for indices in pack(lengths, max_tokens=_BATCH_TOKENS, overhead=overhead_tokens(device)):
            batch = pad([sequences[index] for index in indices], device)
            with autocast(device, self.dtype):
                hidden_NH = predictor_hidden(body, batch)
            yield indices, batch, hidden_NH


@torch.no_grad()
def read(path: str, answers: Sequence[Answer], section: ComputeSection) -> Readings:
    """Read answers to prompts.

    Args:
        path: the language model.
        answers: at least one.
        section: device, dtype and threads.

    Raises:
        ModelLoadError: if the model cannot be loaded.
    """
    reader = Reader.load(path, section)
    sequences = [fitting(*encode_answer(reader.tokenizer, prompt, answer)) for prompt, answer in answers]
    logprobs_N = np.zeros(len(sequences))
    features: list[NDArray[np.float64]] = [np.zeros(0)] * len(sequences)
    for indices, batch, hidden_NH in reader.hidden_states(sequences):
        with autocast(reader.model.device, reader.dtype):
            found_N = hidden_logprobs(hidden_NH, output_layer(reader.model), batch.targets_N, temperature=1.0)
        sizes = [sequences[index].response_length for index in indices]
        parts = zip(indices, torch.split(found_N, sizes), torch.split(hidden_NH.float(), sizes), strict=True)
        for index, of_answer_T, hidden_TH in parts:
            logprobs_N[index] = float(of_answer_T.double().sum())
            features[index] = torch.cat([hidden_TH.mean(0), hidden_TH[-1]]).double().cpu().numpy()
    tokens_N = np.array([float(sequence.response_length) for sequence in sequences])
    return Readings(logprobs_N, tokens_N, np.stack(features))


def fitting(prompt: Sequence[int], answer: Sequence[int], *, max_tokens: int = MAX_TOKENS) -> TokenSequence:
    """Return a sequence of at most `max_tokens`; at least one token of the prompt stays."""
    answer = tuple(answer)[: max_tokens - 1]
    prompt = tuple(prompt)[-(max_tokens - len(answer)) :]
    return TokenSequence((*prompt, *answer), len(prompt))
