"""Log-probs of the reference, the initial policy, for every answer; computed once and kept in the run's
folder.

Each file holds some consecutive answers and is named by the digest of what they depend on: the initial model,
the type that it computes in, and the token ids, which data and chat template determine. So an interrupted
stage and a second one with other settings reuse them, and nothing else is ever read.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairlead.config import RunConfig
from fairlead.inputs import StageInputs
from fairlead.transports.weights.disk import sync
from trainer.distributed.group import Group
from trainer.sequences import TokenSequence
from trainer.tracking import Doing

logger = logging.getLogger(__name__)

SEQUENCES_PER_FILE = 1_024
"""An interruption loses the log-probs of at most this number of answers."""
_FORMAT = "1"
_NAME = "logprobs"

Compute = Callable[[Sequence[TokenSequence]], Tensor]
"""Returns the log-prob [S] of each answer, float64 on the CPU; every rank calls it and gets all of them."""


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """The files of one run."""

    folder: Path
    """Where they are; created if it does not exist."""
    model: str
    """Digest of the reference and its settings; empty if it is not known, and then nothing is kept."""
    group: Group
    """The ranks; the first one reads and writes."""

    def logprobs(self, sequences: Sequence[TokenSequence], compute: Compute, *, doing: Doing) -> Tensor:
        """Return the log-prob [S] of each answer under the reference: those of the files, and computed ones.

        Every rank of several calls this.
        """
        found = []
        used: set[Path] = set()
        reused = 0
        for start in range(0, len(sequences), SEQUENCES_PER_FILE):
            part = sequences[start : start + SEQUENCES_PER_FILE]
            doing("computing log-probs of the reference", start, len(sequences))
            file = self._file(part)
            known = _read(file, len(part)) if self.group.is_first and self.model else None
            content = self.group.broadcast(known.numpy().tobytes() if known is not None else b"")
            if content:
                values = torch.frombuffer(bytearray(content), dtype=torch.float64)
                reused += len(part)
            else:
                values = compute(part)
                if self.group.is_first and self.model:
                    _write(file, values)
            found.append(values)
            used.add(file)
        if self.group.is_first:
            for file in set(self.folder.glob("*.safetensors")) - used:
                file.unlink()
            logger.info(
                "log-probs of the reference: %d answers computed, %d read from %s",
                *(len(sequences) - reused, reused, self.folder),
            )
        return torch.cat(found)

    def _file(self, part: Sequence[TokenSequence]) -> Path:
        digest = hashlib.sha256(f"{_FORMAT}\0{self.model}".encode())
        for sequence in part:
            digest.update(repr((sequence.prompt_length, sequence.token_ids)).encode())
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"


def model_digest(config: RunConfig, made_from: StageInputs) -> str:
    """Return a digest of the initial model and of the settings that its log-probs depend on; empty if a part
    of the model has no known contents.
    """
    [named] = (named for key, named in made_from.sources.items() if key == "preference.path")
    if not named or not all(source.digest for source in named):
        return ""
    section = config.preference
    # Adapters are on weights in `dtype`; without them weights are float32, and only the body computes in it.
    parts = [*(source.digest for source in named), section.dtype, str(bool(section.lora.rank))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(file: Path, count: int) -> Tensor | None:
    """Return the log-probs of a file; None if there is none, or if it is damaged, which is logged."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            values: Tensor = opened.get_tensor(_NAME)
    except (OSError, SafetensorError) as error:
        logger.warning("%s is damaged (%s): its log-probs are computed again", file, error)
        return None
    is_right = values.dtype == torch.float64 and values.shape == (count,) and bool(values.isfinite().all())
    if not is_right or metadata != _metadata(file, values):
        logger.warning("%s has other contents than its name says: its log-probs are computed again", file)
        return None
    return values


def _write(file: Path, values: Tensor) -> None:
    """Write a file atomically."""
    content = save({_NAME: values.contiguous()}, _metadata(file, values))
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        sync(unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(file.parent)


def _metadata(file: Path, values: Tensor) -> dict[str, str]:
    return {"made_from": file.stem, "blake3": blake3(values.numpy().tobytes()).hexdigest()}
