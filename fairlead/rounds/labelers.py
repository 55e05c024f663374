"""What labelers get and return: tasks and rankings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairlead.local.serving import GeneratedAnswer

Task = Sequence[GeneratedAnswer]
"""The answers to one prompt that are ranked against one another."""
Ranking = Mapping[str, Any]
"""A line of `data.preferences`: `prompt`, and `responses` with `text` and `rank`, 1 for the best; equal ranks
are ties. Further keys, such as who ranked, are kept in the file and not read by the stages."""


def pairs(ranking: Ranking) -> Iterator[tuple[str, str]]:
    """Yield (better, worse) for every pair of a ranking that is not a tie."""
    responses = sorted(ranking["responses"], key=lambda response: response["rank"])
    for better, worse in itertools.combinations(responses, 2):
        if better["rank"] < worse["rank"]:
            yield better["text"], worse["text"]
