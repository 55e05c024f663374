"""Where and how a model computes; shared by the model services and the trainer's stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.section import Section
from fairlead.config.server import ServerSection

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["float32", "bfloat16"]


class ComputeSection(Section):
    """Device, type and threads of one process."""

    device: Device = "auto"
    """`auto` takes the GPU if there is one."""
    dtype: DType = "float32"
    """Computation type of the model's body. Heads, log-probs, weights that learn and their optimizer are
    float32 whatever it is."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the process; 0 leaves the choice to OMP_NUM_THREADS or to torch."""


class TrainingSection(ComputeSection):
    """A stage of training: what it may hold in memory at a time."""

    max_micro_batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens, padding included, of one forward pass; the gradient does not depend on it."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each block and compute the rest again in the backward pass: about a third more
    work, a fraction of the memory, the same gradient."""


class ModelServiceSection(ServerSection, ComputeSection):
    """A model served over gRPC."""

    path: str = ""
    """Local folder or hub id. Empty: what the earlier stage left in the run's folder."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Processes that a run on one machine starts; of more `addresses` than replicas, it starts the first."""
    max_sequence_tokens: int = Field(default=0, ge=0)
    """Longest sequence accepted, in tokens; 0 is the model's own limit."""
    max_text_bytes: int = Field(default=1 << 20, ge=1, le=1 << 30)
    """Largest single text accepted, in bytes of UTF-8."""


class BatchingSection(Section):
    """The micro-batcher of the reward and reference services."""

    max_batch_tokens: int = Field(default=8_192, ge=1)
    """Tokens, padding included, of one forward pass. A longer sequence runs alone."""
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    """Tokens waiting at most, half of them of bulk requests; beyond it requests are refused with a retry
    delay."""
    max_queue_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """How long an online request may have to wait for the model, by the speed measured; it is refused with a
    retry delay if it would wait longer. Where answers are awaited by people, set it to what they bear."""
    bulk_patience_seconds: float = Field(default=1.0, ge=0, le=86_400)
    """Bulk requests, which give way to online ones, get a batch at least this often."""
    max_items: int = Field(default=1_024, ge=1)
    """Sequences of one request at most."""
