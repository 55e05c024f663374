"""`python -m tests.chaos.poisoned_policy`: the policy service, which a prompt that holds the poison kills."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from fairlead.types import WeightVersion
from services.policy import __main__ as policy
from services.policy.decoder import Decoder
from services.policy.sample import Sample
from services.runtime import process

POISON = 59
"""A token id, of the word w55."""


def _deadly(join):  # type: ignore[no-untyped-def]
    def joins(decoder: Decoder, samples: Sequence[Sample], version: WeightVersion) -> None:
        if any(POISON in sample.prompt for sample in samples):
            os.kill(os.getpid(), signal.SIGKILL)
        join(decoder, samples, version)

    return joins


if __name__ == "__main__":
    Decoder.join = _deadly(Decoder.join)  # type: ignore[method-assign]
    sys.exit(process.main("policy", policy.run))
