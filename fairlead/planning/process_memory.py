"""The peak memory of one process of a run: its parts, and their sums by device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

RUNTIME_BYTES = {"light": 64 << 20, "torch": 420 << 20, "cuda": 500 << 20}
"""Memory of a process before it loads a model: Python only (`light`), with torch and transformers (`torch`),
both in main memory; and the context of a GPU (`cuda`). tests/unit/fairlead/planning/test_planning.py measures
all but the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """The peak memory of one process, in bytes."""

    name: str
    """Name of the process in the run, without its number."""
    replicas: int = 1
    """Number of processes of this kind."""
    gpus: int = 1
    """GPUs among which each of them divides its model. All sizes but `runtime` are those of one GPU."""
    device: str = "cpu"
    """`cpu` or `cuda`: the device of everything except `runtime`."""
    model: str = ""
    """The model that it loads."""
    weights: int = 0
    """Weights, of the policy and the critic together."""
    gradients: int = 0
    """Gradients of the trained weights, float32."""
    optimizer: int = 0
    """Adam's two moments, float32."""
    gathered: int = 0
    """Weights and gradients that one of several ranks gathers from the others to compute."""
    activations: int = 0
    """Activations of the largest forward and backward pass; an estimate."""
    cache: int = 0
    """Maximum size of the keys and values of running sequences."""
    incoming: int = 0
    """New weights that exist together with the old ones during a swap."""
    copied: int = 0
    """Copy, in main memory, of what a checkpoint holds while it is written (`checkpoint.asynchronous`)."""
    loading: int = 0
    """Main memory of one of several ranks while it loads and writes its part of the models."""
    runtime: int = 0
    """Python and libraries, in main memory."""
    is_offloaded: bool = False
    """Whether weights, gradients and optimizer are in main memory while the rest is on a GPU."""
    takes_share: bool = False
    """Whether it takes a fixed share of each GPU: its total is exact, and `cache` is what is left of it."""
    problem: str = ""
    """Why it would not start, and what to change; empty if it would."""

    @property
    def is_trainer(self) -> bool:
        """Whether it trains a model; its replicas are the ranks of one machine, which share that model."""
        return self.optimizer > 0

    @property
    def model_bytes(self) -> int:
        """Everything except `copied`, `loading` and `runtime`, of one process."""
        trained = self.weights + self.gradients + self.optimizer + self.gathered
        return trained + self.activations + self.cache + self.incoming

    @property
    def gpu_bytes(self) -> int:
        """The memory on each GPU that one process uses; 0 if it uses none."""
        if self.device == "cpu":
            return 0
        return self.model_bytes - self._offloaded + RUNTIME_BYTES["cuda"]

    @property
    def _offloaded(self) -> int:
        return self.weights + self.gradients + self.optimizer if self.is_offloaded else 0

    def on(self, device: str) -> int:
        """Return the memory on `cpu` or `cuda` of all replicas, in bytes."""
        if device == "cuda":
            return self.replicas * self.gpus * self.gpu_bytes
        if self.device == "cpu":
            here = self.model_bytes * self.gpus
        else:
            # Weights for a GPU pass through main memory when they are loaded, saved and published; vLLM reads
            # them from the page cache.
            here = self._offloaded or (0 if self.takes_share else self.weights * self.gpus)
        return self.replicas * (self.runtime + max(here, self.loading) + self.copied)

    @property
    def pod_bytes(self) -> int:
        """The main memory of one pod: of a replica, or of all ranks of the trainer."""
        return self.on("cpu") // (1 if self.is_trainer else self.replicas)

    def as_dict(self) -> dict[str, object]:
        """Return the fields and their total, for JSON."""
        return dataclasses.asdict(self) | {"total": self.model_bytes + self.runtime}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Maximum lengths of PPO's sequences, in tokens."""

    prompt: int
    """The longest prompt."""
    answer: int
    """The longest answer."""

    @property
    def sequence(self) -> int:
        """The longest prompt and answer together."""
        return self.prompt + self.answer
