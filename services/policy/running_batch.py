"""What the engine's thread needs of a running batch.

`decoder.py` works with any cache and on any device; `static/` is for GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fairlead.types import WeightVersion
from services.policy.sample_state import SampleState


class RunningBatch(Protocol):
    """The running samples; used by one thread."""

    slots: int
    """Limit on running samples."""
    running: list[SampleState]
    """Running samples in the order of their rows."""
    keeps_addresses: bool
    """Whether new weights must be copied into the memory of the old ones."""

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values of the running samples."""
        ...

    def add(self, samples: Sequence[SampleState], version: WeightVersion) -> Sequence[SampleState]:
        """Prefill new samples; return the samples that got a token, each one.

        Raises:
            ValueError: if there are more samples than free slots.
        """
        ...

    def step(self, version: WeightVersion) -> Sequence[SampleState]:
        """Continue every running sample with these weights; return the samples that got a token, each one.

        The tokens may be those of an earlier call.
        """
        ...

    def remove(self, samples: Sequence[SampleState]) -> None:
        """Free the slots of some samples."""
        ...

    def reset(self) -> None:
        """Drop all samples and the cache, after a forward pass that failed."""
        ...

    def zero_nonfinite(self) -> None:
        """Zero NaN and infinity left in the cache by weights that produced non-finite values."""
        ...
