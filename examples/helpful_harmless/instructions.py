"""Harmless instructions with a good answer each, from alpaca_eval, and how much of it an answer has.

The first ones are for the evaluation; the others are demonstrations of help, whose likelihood PPO keeps up.
The good answer is the one of eight models that the judge of alpaca_eval liked best. Sharing words with it is
a weak sign of help: another good answer may use other words, and a wrong one the same.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from examples.helpful_harmless.data import lines

MAX_PROMPT_WORDS = 30
"""Longer instructions are left out, as a CPU reads them."""
NUM_EVALUATED = 60
"""Instructions that the policies are asked; the ones after them are demonstrations."""
MAX_ANSWER_WORDS = 40
"""Words that are kept of a good answer to compare with; answers of the policy are short too."""
MAX_DEMONSTRATED_WORDS = 60
"""Most words of a demonstrated answer, which consists of whole sentences."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*")
_WORD = re.compile(r"[a-z0-9]+")
_COMMON = frozenset(
    {"a", "an", "and", "are", "as", "at", "be", "but", "by", "can", "do", "for", "from", "has", "have", "i"}
    | {"if", "in", "is", "it", "its", "me", "my", "not", "of", "on", "or", "so", "that", "the", "their"}
    | {"they", "this", "to", "was", "we", "what", "which", "who", "will", "with", "would", "you", "your"}
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction and a good answer to it."""

    prompt: str
    """The instruction."""
    answer: str
    """The answer, or its beginning."""


def load(file: Path) -> list[Instruction]:
    """Return the short instructions to ask, each with the beginning of its answer."""
    return [
        Instruction(one.prompt, " ".join(one.answer.split()[:MAX_ANSWER_WORDS]))
        for one in _short(file)[:NUM_EVALUATED]
    ]


def demonstrations(file: Path) -> list[Instruction]:
    """Return the other short instructions, each with the first sentences of its answer.

    Answers whose first sentence is too long are left out.
    """
    found = (Instruction(one.prompt, first_sentences(one.answer)) for one in _short(file)[NUM_EVALUATED:])
    return [one for one in found if one.answer]


def first_sentences(text: str) -> str:
    """Return the first sentences or lines with at most MAX_DEMONSTRATED_WORDS words in all; may be empty."""
    beginnings = (text[: end.start()].strip() for end in _SENTENCE_END.finditer(text))
    short = [one for one in (*beginnings, text.strip()) if len(one.split()) <= MAX_DEMONSTRATED_WORDS]
    return short[-1] if short else ""


def _short(file: Path) -> list[Instruction]:
    """Return all short instructions with their whole answers, in the order of the file."""
    found: list[Instruction] = []
    for line in lines(file):
        prompt, responses = line.text("prompt"), line.objects("responses")
        if not responses:
            raise line.error(got="no `responses`", allowed="one or more")
        best = max(responses, key=lambda response: response.number_at("score")).text("text")
        if len(prompt.split()) <= MAX_PROMPT_WORDS and best.strip():
            found.append(Instruction(prompt, best))
    return found


def shared_words(answer: str, good: str) -> float:
    """Return the F1 of the words of two texts, common ones left out; 0 if either has no other."""
    ours, theirs = _words(answer), _words(good)
    common = sum((ours & theirs).values())
    if not common:
        return 0.0
    precision, recall = common / sum(ours.values()), common / sum(theirs.values())
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> Counter[str]:
    return Counter(word for word in _WORD.findall(text.lower()) if word not in _COMMON)
