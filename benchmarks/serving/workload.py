"""What is scored: lengths of real answers, or many answers to one long prompt. Ids at random, never twice.

A request is a list of pairs (prompt, response) of ids. Prompts differ from seed to seed, so nothing that a
server keeps of an earlier turn helps it in a later one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks import lengths

Ids = tuple[int, ...]
Pair = tuple[Ids, Ids]
Request = list[Pair]

LONGEST = 1_024
PROMPT_TOKENS = 256
ANSWERS = 8
SHORTEST_ANSWER, LONGEST_ANSWER = 32, 96


def mixed(count: int, *, seed: int, vocabulary: int, longest: int = LONGEST) -> list[Request]:
    """One sequence a request, of AlpacaEval's lengths."""
    rng = random.Random(f"mixed {seed}")
    # The same lengths for every seed: turns differ in nothing that costs.
    groups = lengths.groups(max(1, -(-count // 8)), longest=longest)
    sizes = [(group[0], answer) for group in groups for answer in group[1:]][:count]
    random.Random(0).shuffle(sizes)
    return [[(_ids(rng, prompt, vocabulary), _ids(rng, answer, vocabulary))] for prompt, answer in sizes]


def shared(count: int, *, seed: int, vocabulary: int, prompt_tokens: int = PROMPT_TOKENS) -> list[Request]:
    """Each request one prompt with its answers."""
    rng, sizes = random.Random(f"shared {seed}"), random.Random(0)
    requests = []
    for _ in range(count):
        prompt = _ids(rng, prompt_tokens, vocabulary)
        answers = [sizes.randint(SHORTEST_ANSWER, LONGEST_ANSWER) for _ in range(ANSWERS)]
        requests.append([(prompt, _ids(rng, length, vocabulary)) for length in answers])
    return requests


def text(ids: Sequence[int]) -> str:
    """The words that the benchmark's tokenizer reads as these ids."""
    return " ".join(f"w{token}" for token in ids)


def _ids(rng: random.Random, count: int, vocabulary: int) -> Ids:
    return tuple(rng.randrange(3, vocabulary) for _ in range(count))
