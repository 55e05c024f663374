"""Whether a machine without a GPU has the memory that vLLM reserves when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from fairlead.errors import EngineFailed
from fairlead.planning.formulas import in_words

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_free(settings: VllmConfig, *, section: str) -> None:
    """Check what vLLM checks later in a process of its own, whose error is only in the log.

    Args:
        settings: of the engine.
        section: the section of the configuration with vLLM's options.

    Raises:
        EngineFailed: if less memory is available than vLLM would reserve on a CPU.
    """
    cache = settings.cache_config
    if settings.device_config.device_type != "cpu" or cache.kv_cache_memory_bytes is not None:
        return
    memory = psutil.virtual_memory()
    wanted = cache.gpu_memory_utilization * memory.total
    if wanted > memory.available:
        raise EngineFailed(
            f"vLLM would reserve {in_words(wanted)} of memory, {cache.gpu_memory_utilization:.0%} of this "
            f"machine's, and {in_words(memory.available)} are available: set "
            f"{section}.kv_cache_memory_bytes, or a smaller "
            f"{section}.gpu_memory_utilization, which counts on CPUs too"
        )
