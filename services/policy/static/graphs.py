"""CUDA graphs of decoding steps, one for each shape of a step.

The first step of a shape runs as usual, so that libraries can prepare; the second is recorded, and all later
ones are replayed: one call in place of a thousand kernel launches. Knows nothing about models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

logger = logging.getLogger(__name__)

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function does on the device, without doing it, and returns a function that does it. Raises
RuntimeError for work that cannot be recorded, such as a value that the host waits for."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What decides the kernels of a step."""

    rows: int
    """Rows that it computes."""
    columns: int
    """Columns that it attends to."""
    is_cut: bool
    """Whether a row keeps only a part of its distribution."""


class Graphs:
    """Runs steps, replayed where that is possible."""

    def __init__(self, step: Callable[[StepShape], None], recorder: Callable[[], Record] | None) -> None:
        """
        Args:
            step: runs a step; reads and writes only memory that keeps its address.
            recorder: returns what records steps; None to run every step as usual.
        """
        self._step = step
        self._recorder = recorder
        self._record = recorder() if recorder else None
        self._seen: set[StepShape] = set()
        self._replays: dict[StepShape, Callable[[], None]] = {}

    def run(self, shape: StepShape) -> None:
        """Run a step, at once or when the device gets to it."""
        if self._record is not None and shape in self._seen and shape not in self._replays:
            try:
                self._replays[shape] = self._record(partial(self._step, shape))
            except RuntimeError as error:
                self._record = self._recorder = None
                logger.warning("decoding steps are not recorded as CUDA graphs: %s", error)
        self._seen.add(shape)
        self._replays.get(shape, partial(self._step, shape))()

    def clear(self) -> None:
        """Forget all graphs, because memory that they use gets another address; none may be running."""
        self._replays.clear()
        self._seen.clear()
        self._record = self._recorder() if self._recorder else None


class CudaRecorder:
    """Implements `Record` with CUDA graphs, which share the memory of their intermediate values.

    When all its graphs are gone, that memory is too, and another recorder is needed.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record a step."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate memory meanwhile, for example for new weights.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        replay: Callable[[], None] = graph.replay
        return replay
