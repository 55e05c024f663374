"""Device, sizes and models of a section. Models have random weights: speed does not depend on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks import tiny_models
from fairlead.config.base import DType
from fairlead.nn.loading import torch_device

PEAK_TFLOPS: Mapping[str, float] = {"H100": 989, "H200": 989, "A100": 312, "B200": 2_250}
"""Dense bfloat16 arithmetic by the data sheet, by a part of the name of the GPU."""

_SHAPES: Mapping[str, Mapping[str, Any]] = {
    # SmolLM2-135M and Llama 3.2 1B.
    "135M": {
        **tiny_models.SMOLLM2,
        "max_position_embeddings": 8_192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "1B": {
        "vocab_size": 128_256,
        "hidden_size": 2_048,
        "intermediate_size": 8_192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8_192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
}
_TINY: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how large a section measures."""

    device: torch.device
    """Device of every model."""
    folder: Path
    """Folder for files of the section; removed at its end."""
    tiny: bool
    """Use tiny models."""

    @classmethod
    def of(cls, device: str, folder: Path, *, tiny: bool) -> Setting:
        """Return the setting of a device by its name."""
        torch.manual_seed(0)
        return cls(torch_device("cuda" if device == "cuda" else "cpu"), folder, tiny)

    @property
    def dtype(self) -> DType:
        """Type that models compute in: bfloat16 on a GPU."""
        return "bfloat16" if self.device.type == "cuda" else "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same as a type of torch."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models to measure."""
        return ("tiny",) if self.tiny else ("135M", "1B")

    def pick(self, usual: int, tiny: int) -> int:
        """Return a size: the usual one, or that of `--tiny`."""
        return tiny if self.tiny else usual

    def shape(self, name: str) -> LlamaConfig:
        """Return the shape of a model."""
        settings = {**_SHAPES.get(name, _TINY), "tie_word_embeddings": True}
        special = {"pad_token_id": tiny_models.PAD, "bos_token_id": tiny_models.BOS}
        return LlamaConfig(**settings | special, eos_token_id=tiny_models.EOS)

    def model(self, name: str, *, dtype: torch.dtype) -> PreTrainedModel:
        """Create a language model on the device that never generates EOS."""
        torch.manual_seed(0)
        with self.device:
            model: PreTrainedModel = LlamaForCausalLM(self.shape(name))
        nn.Module.to(model, dtype)
        model.generation_config.eos_token_id = model.config.eos_token_id = None
        nn.Module.eval(model)
        return model

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds that some work takes, until the device has finished it."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_flops(self) -> tuple[float, str]:
        """Return the largest arithmetic rate of the device in FLOP/s, and where it is from: the data sheet if
        the GPU is known, else a product of matrices.
        """
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name()
            for part, tera in PEAK_TFLOPS.items():
                if part in name:
                    return tera * 1e12, f"{tera:g} TFLOP/s by the data sheet"
        rate = self.matrix_flops()
        return rate, f"{rate / 1e12:.3g} TFLOP/s, measured"

    def matrix_flops(self) -> float:
        """Return the measured rate of a product of large random matrices, in FLOP/s."""
        size = self.pick(8_192, 256) if self.device.type == "cuda" else 512
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            left @ right
        rounds = 10
        return rounds * 2 * size**3 / self.seconds(lambda: [left @ right for _ in range(rounds)])
