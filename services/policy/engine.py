"""The contract between the policy servicer and what generates: requests in, completions out, weights swapped.

The servicer checks requests and knows the wire; an engine knows neither. `hf_engine.py` implements it around
a transformers model.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol

from fairlead.transports.weights.base import Adapter
from fairlead.types import Completion, GenerationRequest, PolicyInfo, WeightVersion


class Engine(Protocol):
    """Generates under weights that change between two decoding steps."""

    @property
    def version(self) -> WeightVersion | None:
        """The weights in use; None before the first."""
        ...

    @property
    def info(self) -> PolicyInfo:
        """What is served.

        Raises:
            Unavailable: before the first weights.
        """
        ...

    async def generate(self, request: GenerationRequest, *, deadline: float | None) -> tuple[Completion, ...]:
        """One completion for each sample, in order. Cancelling the call frees its slots at the next step.

        Args:
            request: checked; its prompt leaves room for at least one token.
            deadline: on the clock of `time.monotonic`.

        Raises:
            Overloaded: the queue has no room.
            StaleWeights: the weights asked for did not come in time.
            DeadlineExceeded: out of time.
            Unavailable: before the first weights, and while stopping.
        """
        ...

    def stream(
        self, request: GenerationRequest, *, deadline: float | None
    ) -> AsyncGenerator[tuple[int, Completion], None]:
        """(sample, what is new of it) as tokens are sampled; a delta's spans count its own tokens from 0.

        Raises as `generate` does. Closing the generator frees the slots.
        """
        ...

    async def load(self, version: WeightVersion, folder: Path, *, adapter: Adapter | None = None) -> None:
        """Reads verified safetensors beside the weights in use, then swaps between two decoding steps.

        Returns when they are in use. A version that is not newer than the one in use is ignored. With
        `adapter`, files hold only that.

        Raises:
            CorruptWeights: if they do not fit the model; the old ones stay in use.
        """
        ...

    async def wait_failed(self) -> None:
        """Waits until the engine cannot go on, and raises why."""
        ...

    def close(self) -> None:
        """Stops; whoever still waits gets Unavailable."""
        ...
