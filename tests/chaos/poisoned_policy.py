"""`python -m tests.chaos.poisoned_policy`: the policy service, but the token POISON kills it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from fairlead.types import WeightVersion
from services.policy import __main__ as policy
from services.policy.decoder import Decoder
from services.policy.sample_state import SampleState
from services.runtime import process

POISON = 59
"""Token ID of the word w55."""


def _fatal(add):  # type: ignore[no-untyped-def]
    def add_or_die(
        decoder: Decoder, samples: Sequence[SampleState], version: WeightVersion
    ) -> Sequence[SampleState]:
        if any(POISON in sample.prompt for sample in samples):
            os.kill(os.getpid(), signal.SIGKILL)
        return add(decoder, samples, version)  # type: ignore[no-any-return]

    return add_or_die


if __name__ == "__main__":
    Decoder.add = _fatal(Decoder.add)  # type: ignore[method-assign]
    sys.exit(process.main("policy", policy.run))
