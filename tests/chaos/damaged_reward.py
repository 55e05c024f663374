"""`python -m tests.chaos.damaged_reward …`: the reward service, whose model gives NaN after some tokens.

A model with such weights would be refused, so they are damaged after it was loaded.
"""

from __future__ import annotations

import sys

from fairlead.nn import ensemble
from fairlead.nn.reward_model import RewardModel
from services.reward import __main__ as reward
from services.runtime import process

DAMAGED = slice(20, 24)
"""IDs of the tokens."""


def _damaging(load):  # type: ignore[no-untyped-def]
    def load_damaged(*args, **kwargs) -> RewardModel:  # type: ignore[no-untyped-def]
        found: RewardModel = load(*args, **kwargs)
        found.body.get_input_embeddings().weight.data[DAMAGED] = float("nan")
        return found

    return load_damaged


if __name__ == "__main__":
    ensemble.load_reward_model = _damaging(ensemble.load_reward_model)  # type: ignore[assignment]
    sys.exit(process.main("reward", reward.run))
