"""What is said before vLLM would not start on a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.errors import EngineFailed
from services.vllm.memory import check_free


def settings(*, device: str = "cpu", share: float = 0.92, cache_bytes: int | None = None) -> Any:
    cache = SimpleNamespace(gpu_memory_utilization=share, kv_cache_memory_bytes=cache_bytes)
    return SimpleNamespace(device_config=SimpleNamespace(device_type=device), cache_config=cache)


def test_more_memory_than_the_machine_has_is_refused_with_what_to_set() -> None:
    with pytest.raises(EngineFailed, match=r"150% of this.* set reward\.vllm\.kv_cache_memory_bytes"):
        check_free(settings(share=1.5), section="reward.vllm")


@pytest.mark.parametrize(
    "other", [settings(device="cuda", share=1.5), settings(share=1.5, cache_bytes=1), settings(share=1e-6)]
)
def test_gpus_a_given_cache_and_a_small_share_are_not_refused(other: Any) -> None:
    check_free(other, section="policy.vllm")
