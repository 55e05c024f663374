"""Answers of a policy to prompts, drawn in this process; each is a pure function of its number and the
seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.generation import decode
from benchmarks.parcel_task.store import readable
from examples.parcel_help import gold
from fairlead.config.base import ComputeSection
from fairlead.data.control import policy_stop_ids
from fairlead.data.encoding import encode_prompt
from fairlead.nn.loading import eos_token_ids, load_causal_lm, load_tokenizer
from fairlead.rounds.files import read_rows, write_rows
from fairlead.types import FinishReason, SamplingParams, WeightVersion
from services.policy.decoder import Decoder
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key

_SLOTS = 256
_VERSION = WeightVersion(0, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as labelers and reward models read it."""

    text: str
    """Without special tokens."""
    ended: bool
    """False if it was cut off at the limit of tokens."""


Answers = Mapping[str, Sequence[Answer]]
"""Answers by prompt."""


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> list[SampleState]:
    """Return `samples` answers to each prompt, one prompt after the other, at temperature 1."""
    stop_ids = eos_token_ids(model, tokenizer) | policy_stop_ids(tokenizer)
    sampling = SamplingParams(max_new_tokens=max_new_tokens, seed=seed)
    drawn = [
        SampleState(ids, sampling, stream_key(seed, number), stop_ids, limit=max_new_tokens)
        for number, ids in enumerate(ids for ids in prompts for _ in range(samples))
    ]
    decode(Decoder(model, slots=_SLOTS), drawn, _VERSION)
    return drawn


def text_of(sample: SampleState, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of an answer, without special tokens."""
    return str(
        tokenizer.decode(sample.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def ended(sample: SampleState) -> bool:
    """Return whether an answer was not cut off."""
    return sample.finish_reason is FinishReason.STOP


def kept(file: Path, policy: Path, prompts: Sequence[str], *, samples: int, limit: int, seed: int) -> Answers:
    """Return answers of a saved policy, from a file; draw them and write it if it does not exist.

    Args:
        file: JSON lines, whose name must say what it depends on.
        policy: folder of the policy.
        prompts: texts.
        samples: answers per prompt.
        limit: most tokens of an answer.
        seed: of the draws.

    Raises:
        ConfigError: the file is damaged.
    """
    if not file.exists():
        tokenizer = load_tokenizer(str(policy))
        drawn = draw(
            load_causal_lm(str(policy), ComputeSection(threads=1)),
            tokenizer,
            [tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts],
            samples=samples,
            max_new_tokens=limit,
            seed=seed,
        )
        found = [[text_of(each, tokenizer), ended(each)] for each in drawn]
        write_rows(
            file,
            (
                {"prompt": prompt, "answers": found[number * samples :][:samples]}
                for number, prompt in enumerate(prompts)
            ),
        )
    with readable(file):
        rows = read_rows(file)
        given: Answers = {
            row["prompt"]: [Answer(text, stopped) for text, stopped in row["answers"]] for row in rows
        }
        if {prompt: len(own) for prompt, own in given.items()} != dict.fromkeys(prompts, samples):
            raise ValueError(f"it does not have {samples} answers to each of {len(prompts)} prompts")
        return given


def golds(answers: Answers) -> dict[str, list[float]]:
    """Return the gold rewards of answers, by prompt."""
    return {
        prompt: [gold.reward(prompt, answer.text, ended=answer.ended) for answer in own]
        for prompt, own in answers.items()
    }
