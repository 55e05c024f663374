"""Checkpoints of the stages that read files: an interrupted stage continues from them bit for bit.

Written every `checkpoint.every_steps` steps and when a signal stops the stage; deleted when it has finished.
Knows neither models nor losses: the stage passes tensors and its position.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from fairlead import inputs
from fairlead.config import RunConfig
from fairlead.errors import CorruptCheckpoint
from fairlead.transports.weights.base import Ancestor
from fairlead.types import WeightVersion
from trainer import finite
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.distributed import slices
from trainer.distributed.collectives import largest
from trainer.distributed.group import Group

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RECEIVED: list[int] = []
"""Signals of this process on which several ranks have to agree."""


class StageCheckpoints:
    """The checkpoints of one stage of a run. A stage runs only once at a time, so no incarnation has to be
    fenced.
    """

    def __init__(
        self,
        stage: str,
        config: RunConfig,
        *,
        sequences: Iterable[tuple[int, ...]],
        group: Group | None = None,
    ) -> None:
        """
        Args:
            stage: `sft`, `reward_model` or `preference`.
            config: the run.
            sequences: token ids of everything that the stage learns from, in its order.
            group: the ranks that train together, all of which make the same calls; None: only this process.
        """
        self._group = group or Group.single()
        self._root = root(stage, config)
        self._stage = stage
        self._every = config.checkpoint.every_steps
        self._keep = config.checkpoint.keep
        self._store = CheckpointStore(self._root)
        self._made_from = _digest(inputs.collect(stage, config).digest, sequences)

    def load(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint; None without one that was made from the same inputs."""
        found = self._store.load_newest(_LINEAGE) if self._group.is_first else None
        if found is None and self._group.is_first and self._store.versions():
            logger.warning("%s starts from the beginning: all its checkpoints are damaged", self._stage)
        found = self._agreed(found)
        if found is None:
            return None
        if found.state.get("made_from") != self._made_from:
            logger.warning(
                "%s starts from the beginning: the checkpoint of step %d was made with different settings, "
                "data or initial model",
                self._stage,
                found.version.update,
            )
            self.forget()
            return None
        logger.info("%s continues from the checkpoint of step %d", self._stage, found.version.update)
        return found

    def _agreed(self, found: Checkpoint | None) -> Checkpoint | None:
        """Return on every rank the checkpoint that the first one has found."""
        version = self._group.broadcast(str(found.version).encode() if found else b"").decode()
        if version and not self._group.is_first:
            found = self._store.load(WeightVersion.parse(version), verify=False)
        self._group.barrier()  # it may be deleted next
        return found

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step."""
        return step % self._every == 0

    def save(self, position: Position, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the checkpoint of a position and delete old ones.

        Raises:
            NotFinite: if a tensor is not finite.
        """
        for name, group in tensors.items():
            finite.check_weights(
                group,
                what=f"{self._stage}: the {name}",
                rate=f"{self._stage}.learning_rate",
                group=self._group,
            )
        version = WeightVersion(_LINEAGE[0].incarnation, position.step)
        state = {**asdict(position), "made_from": self._made_from}
        if not self._group.is_first:
            slices.write(Path(self._group.broadcast(b"").decode()), tensors, self._group)
            self._group.idle("has written a checkpoint")
            return
        self._store.save(
            version,
            tensors=tensors,
            state=state,
            group=self._group,
            announce=self._announce,
        )
        self._group.idle("has written a checkpoint")
        self._store.prune(keep=self._keep, lineage=_LINEAGE)

    def _announce(self, folder: Path) -> None:
        self._group.broadcast(str(folder.absolute()).encode())

    def forget(self) -> None:
        """Delete every checkpoint, on the first rank."""
        if self._group.is_first:
            with contextlib.suppress(OSError):
                self._store.forget()
            shutil.rmtree(self._root, ignore_errors=True)


_LINEAGE = (Ancestor(1, 0),)


def root(stage: str, config: RunConfig) -> Path:
    """Return the folder of a stage's checkpoints."""
    return config.folder.stage_checkpoints(stage)


@dataclass(slots=True)
class Position:
    """How far training has come; part of a checkpoint."""

    step: int = 0
    """Optimizer steps done, of all members of an ensemble."""
    member: int = 0
    """Members of an ensemble that are trained; 0 for a single model until it is trained."""
    epoch: int = 0
    """Epochs of the current member that are trained and evaluated."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step of the current epoch."""
    member_losses: list[float] = field(default_factory=list)
    """Mean loss of the last epoch of each trained member."""

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Position:
        """Return the position in the state of a checkpoint.

        Raises:
            CorruptCheckpoint: if the state has another form.
        """
        try:
            return cls(
                step=int(state["step"]),
                member=int(state["member"]),
                epoch=int(state["epoch"]),
                losses=[_number(loss) for loss in state["losses"]],
                member_losses=[_number(loss) for loss in state["member_losses"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCheckpoint(f"the checkpoint has no position: {error!r}") from error


def _number(value: float | None) -> float:
    """Return a number from JSON, in which one that is not finite is null."""
    return float("nan") if value is None else float(value)


class AgreedStop(SystemExit):
    """The end of the process at the same place on every rank, so that all of them can write a checkpoint."""


def may_save(stop: SystemExit, group: Group) -> bool:
    """Return whether a checkpoint can be written when the stage is stopped: several ranks have to agree."""
    return group.size == 1 or isinstance(stop, AgreedStop)


@contextlib.contextmanager
def stops_agreed(group: Group) -> Iterator[None]:
    """Let several ranks stop only together: in the block SIGTERM and SIGINT take effect in `agree_to_stop`.

    It is called at the end of the block, too. With one rank they take effect at once.
    """
    if group.size == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        _RECEIVED.append(number)

    handlers = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
        agree_to_stop(group)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def agree_to_stop(group: Group) -> None:
    """Stop if any rank got a signal in `stops_agreed`. Every rank of several calls this at the same place.

    Raises:
        AgreedStop: on every rank.
    """
    if group.size == 1:
        return
    # A signal that arrives after this counts the next time.
    stopped = largest(_RECEIVED[0] if _RECEIVED else 0, group)
    if stopped:
        _RECEIVED.clear()
        logger.info("stopped by %s; run the same command again to continue", signal.Signals(stopped).name)
        raise AgreedStop(128 + stopped)


@contextlib.contextmanager
def uninterrupted(group: Group | None = None) -> Iterator[None]:
    """Delay SIGTERM and SIGINT to the end of the block, so that no optimizer step is interrupted halfway.

    Several ranks are in `stops_agreed`, and agree at the end of the block.
    """
    if group is not None and group.size > 1:
        yield
        agree_to_stop(group)
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _digest(made_from: str, sequences: Iterable[tuple[int, ...]]) -> str:
    """Return one digest of the inputs and of the token ids, which depend on this version of the code too."""
    digest = hashlib.sha256(made_from.encode())
    for sequence in sequences:
        digest.update(repr(sequence).encode())
    return digest.hexdigest()
