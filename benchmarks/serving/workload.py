"""Workloads: lengths of real answers, or many answers to one long prompt, with random ids.

A request is a list of pairs (prompt, response) of ids. Prompts differ between seeds, so a server's cache of
an earlier turn does not help it in a later one.
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
    """Return one sequence per request, with AlpacaEval's lengths."""
    rng = random.Random(f"mixed {seed}")
    # The same lengths for every seed, so that turns cost the same.
    groups = lengths.groups(max(1, -(-count // 8)), longest=longest)
    sizes = [(group[0], answer) for group in groups for answer in group[1:]][:count]
    random.Random(0).shuffle(sizes)
    return [[(_ids(rng, prompt, vocabulary), _ids(rng, answer, vocabulary))] for prompt, answer in sizes]


def shared(count: int, *, seed: int, vocabulary: int, prompt_tokens: int = PROMPT_TOKENS) -> list[Request]:
    """Return requests of one prompt with its answers."""
    rng, sizes = random.Random(f"shared {seed}"), random.Random(0)
    requests = []
    for _ in range(count):
        prompt = _ids(rng, prompt_tokens, vocabulary)
        answers = [sizes.randint(SHORTEST_ANSWER, LONGEST_ANSWER) for _ in range(ANSWERS)]
        requests.append([(prompt, _ids(rng, length, vocabulary)) for length in answers])
    return requests


def text(ids: Sequence[int]) -> str:
    """Return the words that the benchmark's tokenizer encodes as these ids."""
    return " ".join(f"w{token}" for token in ids)


def _ids(rng: random.Random, count: int, vocabulary: int) -> Ids:
    return tuple(rng.randrange(3, vocabulary) for _ in range(count))
