"""Measure the pause of generation for a swap, in the real engine under load: median and longest.

Weights are read next to those in use, so a swap only exchanges pointers, but reading takes CPU time from
decoding. Measured is what a caller sees: the time between the last token of the old weights and the first of
the new ones, against the usual time between two tokens.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, LlamaConfig

from benchmarks import tiny_models
from benchmarks.result import Result, Settings
from fairlead import metrics
from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import GenerationRequest, ModelInfo, SamplingParams, WeightVersion
from services.policy.front import EngineLimits
from services.policy.replacement import Replacement
from services.policy.transformers_engine import TransformersEngine
from trainer.model_state import unique_tensors

SEQUENCES, SWAPS, STEPS_BETWEEN = 8, 12, 12
POSITIONS = 1_024


def run(settings: Settings) -> dict[str, Result]:
    """Measure the pause of each swap."""
    shape = tiny_models.config(width=256, layers=4, vocabulary=512, positions=POSITIONS)
    if settings.quick:
        shape = tiny_models.config(width=64, layers=2, vocabulary=96, positions=POSITIONS)
    with tempfile.TemporaryDirectory() as name:
        return asyncio.run(measure(Path(name), shape, settings))


async def measure(
    root: Path, shape: LlamaConfig, settings: Settings, *, dtype: torch.dtype = torch.float32
) -> dict[str, Result]:
    """Measure the pause of each swap for a model of some shape; files are written in `root`."""
    tiny_models.save(root / "model", shape, reward=False)
    model = tiny_models.causal_lm(shape, settings.device)
    nn.Module.to(model, dtype)
    registry = CollectorRegistry()
    engine = TransformersEngine(
        model,
        AutoTokenizer.from_pretrained(root / "model"),
        ModelInfo("m", "f", shape.vocab_size, POSITIONS, "float32"),
        limits=EngineLimits(max_slots=SEQUENCES),
        policy_metrics=metrics.PolicyMetrics(registry),
        initial=WeightVersion(1, 0),
    )
    store = FilesystemWeightStore(root / "weights")
    tensors = {key: tensor.detach().cpu().clone() for key, tensor in unique_tensors(model).items()}
    with store.publish(WeightVersion(1, 1), parent=None, lineage=(Ancestor(1, 0),)) as folder:
        save_file(tensors, folder / "model-1.safetensors")
    folder = store.fetch(WeightVersion(1, 1))
    start = time.perf_counter()
    Replacement.read(folder, model)
    copy = time.perf_counter() - start
    swaps = 2 if settings.quick else SWAPS
    watched = _Watched()
    streams = [asyncio.create_task(watched.follow(engine, number)) for number in range(SEQUENCES)]
    try:
        pauses = []
        for update in range(1, swaps + 1):
            await watched.more(STEPS_BETWEEN)
            before = registry.get_sample_value("fairlead_policy_swap_seconds_sum") or 0.0
            await engine.load(WeightVersion(1, update), folder)
            pauses.append((registry.get_sample_value("fairlead_policy_swap_seconds_sum") or 0.0) - before)
            await watched.more(1)
    finally:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await asyncio.to_thread(engine.close)
    step = watched.step_seconds()
    gaps = watched.gaps_at_swaps()
    megabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    what = f"one step + reading {megabytes:.0f} MB beside it"
    return {
        "swap_median": Result(statistics.median(pauses), "s", step + copy, what, at_most=1.0),
        "swap_longest": Result(max(pauses), "s", step + copy, what, at_most=1.0),
        "swap_gap_median": Result(statistics.median(gaps), "s", step, "the usual time between two tokens"),
        "swap_gap_longest": Result(max(gaps), "s", step + copy, what, at_most=1.0),
    }


class _Watched:
    """Times of the first sequence's tokens, and the weights of each."""

    def __init__(self) -> None:
        self._tokens: list[tuple[float, WeightVersion, int]] = []
        self._answers = 0
        self._arrived = asyncio.Event()

    async def follow(self, engine: TransformersEngine, number: int) -> None:
        """Generate answer after answer; the tokens of the first are timed."""
        while True:
            sampling = SamplingParams(max_new_tokens=POSITIONS - 8, seed=number)
            request = GenerationRequest(f"r{number}", (1, 5, 6), sampling)
            self._answers += number == 0
            async for _, delta in engine.stream(request, deadline=None):
                if number == 0 and delta.version_spans:
                    self._tokens.append((time.perf_counter(), delta.version_spans[-1].version, self._answers))
                    self._arrived.set()

    async def more(self, count: int) -> None:
        """Wait for a number of further tokens."""
        wanted = len(self._tokens) + count
        while len(self._tokens) < wanted:
            self._arrived.clear()
            async with asyncio.timeout(60):
                await self._arrived.wait()

    def step_seconds(self) -> float:
        """Return the usual time between two tokens of the same weights."""
        return statistics.median(after - before for before, after, same in self._gaps() if same)

    def gaps_at_swaps(self) -> list[float]:
        """Return the times between the last token of the old weights and the first of the new."""
        return [after - before for before, after, same in self._gaps() if not same]

    def _gaps(self) -> list[tuple[float, float, bool]]:
        pairs = zip(self._tokens, self._tokens[1:], strict=False)
        return [(one[0], two[0], one[1] == two[1]) for one, two in pairs if one[2] == two[2]]
