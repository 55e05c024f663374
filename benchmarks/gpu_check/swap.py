"""What callers notice of new weights while sequences run: the time between two tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.setting import Setting
from benchmarks.result import Settings
from benchmarks.weights import swap


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the usual time, the gap at a swap, and the time in which the engine's thread swaps."""
    for name in setting.models:
        folder = setting.folder / name
        found = asyncio.run(
            swap.measure(
                folder,
                setting.shape(name),
                Settings(setting.device, quick=setting.tiny),
                dtype=setting.torch_dtype,
            )
        )
        median, longest = found["swap_gap_median"], found["swap_gap_longest"]
        what = f"{swap.SEQUENCES} sequences, {setting.dtype}"
        yield Figure(f"{name}: time between two tokens", median.baseline * 1e3, "ms", what)
        yield Figure(f"{name}: the same at a swap, median", median.value * 1e3, "ms", what)
        yield Figure(f"{name}: the same at a swap, longest", longest.value * 1e3, "ms", what)
        pause = found["swap_median"]
        yield Figure(f"{name}: pause of the engine's thread", pause.value * 1e3, "ms", pause.what)
