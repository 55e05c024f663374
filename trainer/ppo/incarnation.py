"""An incarnation's right to write: its number, the fence in the queue, and its place in the lineage.

Claimed at the start, and again when a guard sends the run back. The order is files, then fence, then
checkpoint, so that an older trainer cannot change anything that was already read. Knows nothing about models.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairlead.errors import Fenced
from fairlead.transports.rollouts.base import TrainerQueue
from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from trainer import lineage
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.ppo.retry_queue import QueueRetry

logger = logging.getLogger(__name__)


class Incarnation:
    """The identity of this trainer among all trainers of its run."""

    def __init__(
        self, folder: Path, *, queue: TrainerQueue, checkpoints: CheckpointStore, store: FilesystemWeightStore
    ) -> None:
        """`folder` holds the claims; nothing is claimed yet."""
        self._folder = folder
        self._queue = queue
        self._checkpoints = checkpoints
        self._store = store
        self._claimed = 0
        self.lineage: tuple[Ancestor, ...] = ()
        """Incarnations whose weights count, this one last."""

    @property
    def number(self) -> int:
        """The claimed number; 0 before the first claim."""
        return self._claimed

    def version(self, update: int) -> WeightVersion:
        """Return the version of this incarnation's weights after `update` updates."""
        return WeightVersion(self._claimed, update)

    def claim(self, retry: QueueRetry) -> Checkpoint | None:
        """Claim an incarnation, take the fence, and only then read the newest checkpoint.

        From then on no older incarnation can begin, so the lineage is complete.
        """
        known = [retry.call(self._queue.known_incarnation)]
        known += [version.incarnation for version in self._checkpoints.versions()]
        known += [version.incarnation for version in self._store.versions()]
        self._take(1 + max(known), retry)
        self.lineage = lineage.read(self._folder)
        return self._checkpoints.load_newest(self.lineage)

    def claim_again(self, retry: QueueRetry, *, newest: int) -> Checkpoint | None:
        """Claim another incarnation and read the newest checkpoint of at most `newest` updates."""
        self._take(1 + self._claimed, retry)
        return self._checkpoints.load_newest((*self.lineage, Ancestor(self._claimed, newest)))

    def begin(self, update: int) -> None:
        """Record the update after which this incarnation begins; later updates of others leave the lineage.

        Raises:
            Fenced: if a newer incarnation was claimed meanwhile: it does not know about this one.
        """
        self.confirm()
        lineage.record_resume(self._folder, self._claimed, resumed_from=update)
        self.lineage = (*self.lineage, Ancestor(self._claimed, update))
        logger.info("incarnation %d begins at update %d", self._claimed, update)

    def confirm(self) -> None:
        """Check that this is still the newest incarnation.

        Raises:
            Fenced: if it is not.
        """
        newest = max(lineage.claimed(self._folder))
        if newest > self._claimed:
            raise Fenced(f"incarnation {newest} of the trainer has taken over from {self._claimed}")

    def _take(self, at_least: int, retry: QueueRetry) -> None:
        number = lineage.claim(self._folder, at_least=at_least)
        self._claimed = number
        retry.call(lambda: self._queue.take_fence(number))
        lineage.shut_out(self._folder, number)
