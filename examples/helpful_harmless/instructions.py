"""Harmless instructions with a good answer each, from alpaca_eval, and how much of it an answer has.

The good answer is the one of eight models that the judge of alpaca_eval liked best. Sharing words with it is
a weak sign of help: another good answer may use other words, and a wrong one the same.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

MAX_PROMPT_WORDS = 30
"""Longer instructions are left out, as a CPU reads them."""
MAX_ANSWER_WORDS = 40
"""Words that are kept of a good answer; answers of the policy are short too."""
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
    """The beginning of the answer."""


def load(file: Path, *, count: int) -> list[Instruction]:
    """Return the first `count` short instructions."""
    found: list[Instruction] = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if len(row["prompt"].split()) > MAX_PROMPT_WORDS:
                continue
            best = max(row["responses"], key=lambda response: response["score"])
            answer = " ".join(best["text"].split()[:MAX_ANSWER_WORDS])
            if answer and len(found) < count:
                found.append(Instruction(row["prompt"], answer))
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
