"""What the check ran on: versions, the GPU, and the rates that the other sections are compared with."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.setting import Setting

_PACKAGES = ("torch", "transformers", "peft", "triton", "vllm")


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield versions and rates."""
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    yield Figure(
        "threads of torch", torch.get_num_threads(), note=f"Python {platform.python_version()}, {versions}"
    )
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setting.device)
        yield Figure(
            "GPU memory",
            properties.total_memory / 2**30,
            "GiB",
            f"{properties.name}, CUDA {torch.version.cuda}",
        )
        yield Figure("copy within the device", _copy_rate(setting) / 1e12, "TB/s", "read and written")
    yield Figure("product of matrices", setting.matrix_flops() / 1e12, "TFLOP/s", setting.dtype)


def _copy_rate(setting: Setting) -> float:
    source = torch.empty(setting.pick(1 << 32, 1 << 20), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / setting.seconds(lambda: target.copy_(source))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
