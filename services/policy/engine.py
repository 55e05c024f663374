"""The contract between the policy servicer and a generation engine.

The servicer checks requests and knows the wire; an engine knows neither. `transformers_engine.py` implements
the contract with a transformers model in this process, `vllm/engine.py` with vLLM.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Protocol

from fairlead.transports.weights.base import Adapter, Probe
from fairlead.types import Completion, GenerationRequest, ModelInfo, PolicyInfo, WeightVersion


class Engine(Protocol):
    """Generates completions with weights that may change between two decoding steps."""

    @property
    def version(self) -> WeightVersion | None:
        """The weights in use; None before the first."""
        ...

    @property
    def model(self) -> ModelInfo:
        """The architecture of the served model, which is known before the first weights."""
        ...

    @property
    def info(self) -> PolicyInfo:
        """Description of the served model.

        Raises:
            Unavailable: before the first weights.
        """
        ...

    async def generate(
        self,
        request: GenerationRequest,
        *,
        deadline: float | None,
        on_start: Callable[[], None] | None = None,
    ) -> tuple[Completion, ...]:
        """Return one completion for each sample, in order. Cancelling the call frees its slots at the next
        step.

        Args:
            request: a checked request; its prompt is at least one token shorter than the context.
            deadline: on the clock of `time.monotonic`; None for no deadline.
            on_start: called from any thread shortly before an exclusive request starts, which may kill the
                process.

        Raises:
            Overloaded: if the queue is full.
            StaleWeights: if the required weights did not arrive in time.
            DeadlineExceeded: if the deadline passed.
            Unavailable: before the first weights, and while stopping.
        """
        ...

    def stream(
        self, request: GenerationRequest, *, deadline: float | None
    ) -> AsyncGenerator[tuple[int, Completion], None]:
        """Yield (sample index, new part of it) as tokens are sampled; spans of a part count from its own
        token 0.

        Raises the errors of `generate`. Closing the generator frees the slots.
        """
        ...

    async def load(
        self,
        version: WeightVersion,
        folder: Path,
        *,
        adapter: Adapter | None = None,
        probe: Probe | None = None,
    ) -> None:
        """Swap to the weights in verified safetensors files, between two decoding steps.

        Returns when the new weights are in use. Ignores a version that is not newer than the one in use.

        Args:
            version: the version.
            folder: its files.
            adapter: base model, if the files hold an adapter instead of a whole model.
            probe: what the weights compute, for engines that load them by code of others.

        Raises:
            CorruptWeights: if the files do not fit the model; the weights in use stay.
        """
        ...

    async def wait_failed(self) -> None:
        """Wait until the engine cannot continue, and raise its error."""
        ...

    def close(self) -> None:
        """Stop; pending requests fail with Unavailable."""
        ...
