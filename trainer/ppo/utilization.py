"""The share of the peak FLOP/s of the GPUs that the training of an update uses (MFU).

After Chowdhery et al., PaLM (2022), appendix B, without the FLOPs of attention: 6 FLOPs a parameter and
token, 2 forward and 4 backward; 4 if the weights are frozen, which get no gradient. Knows nothing about how
models are divided among ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fairlead.config import RunConfig
from fairlead.errors import FairleadError
from fairlead.planning.model_size import model_size
from trainer.ppo.actor_critic import initial_path

_PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "A10G": 1.25e14,
    "L4": 1.21e14,
    "V100": 1.25e14,
}
"""Dense FLOP/s in 16 bits by a part of the name of the GPU, from NVIDIA's data sheets."""


@dataclass(frozen=True, slots=True)
class Utilization:
    """What an update computes for each token, and what the GPUs could compute."""

    flops_per_token: float
    """FLOPs of all passes of an update over one token of a rollout."""
    peak_flops: float
    """FLOP/s of all GPUs of the trainer."""

    @classmethod
    def of(cls, config: RunConfig, device: torch.device, *, num_gpus: int) -> Utilization | None:
        """Return that of a run; None without a GPU whose peak is known, or if the model's size is not."""
        if device.type != "cuda":
            return None
        peak = peak_of(torch.cuda.get_device_name(device))
        if peak is None:
            return None
        try:
            size = model_size(initial_path(config))
        except FairleadError:
            return None
        parameters = size.parameters + (size.body if config.ppo.has_critic else 0)
        per_parameter = 4 if config.ppo.lora.rank else 6
        return cls(float(per_parameter * parameters * config.ppo.epochs), peak * num_gpus)

    def ratio(self, *, tokens: int, seconds: float) -> float:
        """Return the share for an update.

        Args:
            tokens: of its prompts and answers.
            seconds: spent in training on them.
        """
        return self.flops_per_token * tokens / (seconds * self.peak_flops)


def peak_of(gpu: str) -> float | None:
    """Return the peak FLOP/s of a GPU in 16 bits by its name; None if it is not known."""
    # The longest part first: an L40S is not an L4.
    for part in sorted(_PEAK_FLOPS, key=len, reverse=True):
        if part in gpu:
            return _PEAK_FLOPS[part]
    return None
