"""Who ranks the answers: the contract between a loop of rounds and people, programs or simulated labelers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from fairlead.config import RunConfig
from fairlead.local.serving import GeneratedAnswer

Task = Sequence[GeneratedAnswer]
"""The answers to one prompt that are ranked against one another."""
Ranking = Mapping[str, Any]
"""A line of `data.preferences`: `prompt`, and `responses` with `text` and `rank`, 1 for the best; equal ranks
are ties. Further keys, such as who ranked, are kept in the file and not read by the stages."""


class Labelers(Protocol):
    """Those who rank."""

    def give(self, number: int, tasks: Sequence[Task]) -> None:
        """Hand over the tasks of a round. Tasks that were given before are not given again.

        Args:
            number: number of the round, from 0.
            tasks: never empty lists.
        """

    def wait(self, number: int) -> Sequence[Ranking]:
        """Wait until there are enough rankings of a round, and return them.

        It may take days, be interrupted, and be called again in another process after `give`.
        """

    def following(self, config: RunConfig) -> AbstractContextManager[None]:
        """Rank answers of the policy while PPO tunes it, during the block, if these labelers do.

        New answers are in `config.folder.rollout_samples`; rankings are appended to `data.fresh_rankings`,
        from which the trainer's guard reads them.
        """


def pairs(ranking: Ranking) -> Iterator[tuple[str, str]]:
    """Yield (better, worse) for every pair of a ranking that is not a tie."""
    responses = sorted(ranking["responses"], key=lambda response: response["rank"])
    for better, worse in itertools.combinations(responses, 2):
        if better["rank"] < worse["rank"]:
            yield better["text"], worse["text"]
