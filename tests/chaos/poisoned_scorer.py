"""`python -m tests.chaos.poisoned_scorer reward|reference …`: that service, but one prompt kills it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Sequence

from services.reference import __main__ as reference
from services.reference.scorer import ReferenceScorer
from services.reward import __main__ as reward
from services.reward.scorer import RewardScorer
from services.runtime import process

POISON = (41, 39, 59)
"""Token IDs of the prompt "w37 w35 w55"."""


def _die_if_poisoned(sequences: Iterable[Sequence[int]]) -> None:
    for ids in sequences:
        if any(tuple(ids[start : start + len(POISON)]) == POISON for start in range(len(ids))):
            os.kill(os.getpid(), signal.SIGKILL)


def _poison_reward(prepare):  # type: ignore[no-untyped-def]
    def prepare_or_die(scorer, sequences):  # type: ignore[no-untyped-def]
        _die_if_poisoned(sequences)
        return prepare(scorer, sequences)

    return prepare_or_die


def _poison_reference(logprobs):  # type: ignore[no-untyped-def]
    def logprobs_or_die(scorer, lookups):  # type: ignore[no-untyped-def]
        _die_if_poisoned(lookup.pair.prompt_token_ids for lookup in lookups)
        return logprobs(scorer, lookups)

    return logprobs_or_die


if __name__ == "__main__":
    service = sys.argv.pop(1)
    RewardScorer.prepare = _poison_reward(RewardScorer.prepare)  # type: ignore[method-assign]
    ReferenceScorer.logprobs = _poison_reference(ReferenceScorer.logprobs)  # type: ignore[method-assign]
    sys.exit(process.main(service, reward.run if service == "reward" else reference.run))
