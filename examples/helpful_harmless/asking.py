"""Ask both policies the same: held-out prompts of the pairs, those of the safety suite, and instructions.

The answers of the untuned policy are kept in the run's folder, as it does not change with training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path

from examples.helpful_harmless import kept
from examples.helpful_harmless.baselines import Pairs, load_pairs
from examples.helpful_harmless.data import RANKINGS, SENTENCES, data_file
from examples.helpful_harmless.instructions import Instruction, load
from examples.helpful_harmless.reading import Answer
from fairlead.config import RunConfig
from fairlead.data.chat import Chat, Prompt
from fairlead.data.records import load_prompts
from fairlead.data.sentences import load_parts
from fairlead.evaluation import items
from fairlead.local.serving import GeneratedAnswer, ask, serving
from fairlead.types import Message, SamplingParams

NUM_PROMPTS = 200
"""Most held-out prompts; each policy answers each once."""
NUM_SENTENCES = 100
ANSWER_TOKENS = 24
"""Tokens of an answer to a checkable question."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that both policies are asked or read."""

    pairs: Pairs
    """Pairs of people."""
    heldout: tuple[Prompt, ...]
    """Prompts that RLOO has not seen, and neither has the reward model."""
    suite: tuple[items.Item, ...]
    """Prompts and questions of the safety suite."""
    instructions: tuple[Instruction, ...]
    """Harmless instructions."""
    sentences: tuple[str, ...]
    """Text of another kind."""

    @property
    def places(self) -> list[int]:
        """Where the pairs of the held-out prompts are among the unseen ones."""
        prompts = {str(prompt) for prompt in self.heldout}
        return [place for place, pair in enumerate(self.pairs.unseen) if str(pair.prompt) in prompts]

    def of(self, probe: str) -> list[items.Item]:
        """Return the items of a probe."""
        return [item for item in self.suite if item.probe == probe]


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one policy."""

    heldout: tuple[GeneratedAnswer, ...]
    harmful: tuple[GeneratedAnswer, ...]
    harmless: tuple[GeneratedAnswer, ...]
    instructions: tuple[GeneratedAnswer, ...]
    questions: tuple[GeneratedAnswer, ...]


def sources(config: RunConfig, data: Path) -> Sources:
    """Return what the policies are asked and read.

    Args:
        config: the run.
        data: the folder with alpaca_eval and rotten_tomatoes.

    Raises:
        FairleadError: if data is missing or invalid.
    """
    sentences, instructions = (data_file(data, name) for name in (SENTENCES, RANKINGS))
    texts = [sentence.text for sentence in load_parts(sentences, prompt_words=3, seed=config.seed).judge]
    return Sources(
        pairs=load_pairs(config),
        heldout=load_prompts(config).heldout[:NUM_PROMPTS],
        suite=tuple(items.packaged()),
        instructions=tuple(load(instructions)),
        sentences=tuple(texts[:NUM_SENTENCES]),
    )


async def answers_of(config: RunConfig, model: str, found: Sources) -> Answers:
    """Return a policy's answers to all prompts, through the policy service.

    Raises:
        FairleadError: if the service fails.
    """
    async with serving(config, {"policy": Path(model)}) as addresses:
        groups = {
            name: await ask(
                addresses["policy"], asked, samples=1, sampling=_sampling(config, greedy=name == "questions")
            )
            for name, asked in _prompts(found).items()
        }
    return Answers(**{name: tuple(one for [one] in group) for name, group in groups.items()})


async def untuned_answers(config: RunConfig, model: str, found: Sources) -> Answers:
    """Return the same for the untuned policy; kept answers are read if they are to the same prompts."""
    prompts = _prompts(found)
    sampling = [repr(_sampling(config, greedy=greedy)) for greedy in (False, True)]
    texts = {name: [str(prompt) for prompt in asked] for name, asked in prompts.items()}
    digest = blake2b(json.dumps([model, sampling, texts]).encode()).hexdigest()
    file = config.folder.root / "answers_untuned.json"
    known = kept.read(file, digest)
    if known is not None:
        return Answers(
            **{
                name: tuple(
                    GeneratedAnswer(prompt, text, ended)
                    for prompt, (text, ended) in zip(asked, known[name], strict=True)
                )
                for name, asked in prompts.items()
            }
        )
    said = await answers_of(config, model, found)
    rows = {
        one.name: [[answer.text, answer.ended] for answer in getattr(said, one.name)] for one in fields(said)
    }
    kept.write(file, digest, rows)
    return said


def chat(text: str) -> Chat:
    """Return a conversation of one message of the user."""
    return Chat((Message("user", text),))


def said(answers: Sequence[GeneratedAnswer]) -> list[Answer]:
    """Return the prompts and the texts of answers."""
    return [(answer.prompt, answer.text) for answer in answers]


def _prompts(found: Sources) -> dict[str, list[Prompt]]:
    return {
        "heldout": list(found.heldout),
        "harmful": [chat(item.prompt) for item in found.of("harmful")],
        "harmless": [chat(item.prompt) for item in found.of("harmless")],
        "instructions": [chat(one.prompt) for one in found.instructions],
        "questions": [chat(item.prompt) for item in found.of("question")],
    }


def _sampling(config: RunConfig, *, greedy: bool) -> SamplingParams:
    if greedy:
        return SamplingParams(temperature=0.0, max_new_tokens=ANSWER_TOKENS, seed=0)
    return SamplingParams(
        temperature=config.evaluation.temperature,
        max_new_tokens=config.sampling.max_new_tokens,
        seed=random.Random(f"{config.seed} outcome").getrandbits(62),
    )
