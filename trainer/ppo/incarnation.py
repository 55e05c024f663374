"""An incarnation's right to write: a number of its own, the queue's fence, and its place in the lineage.

Claimed at the start, and again when a guard sends the run back. Files first, fence second, checkpoint third:
so an older trainer can change nothing that was looked at. Knows no models.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairlead.errors import Fenced
from fairlead.transports.rollouts.base import TrainerQueue
from fairlead.transports.weights.base import Ancestor, WeightStore
from fairlead.types import WeightVersion
from trainer import lineage
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.ppo.patience import Patience

logger = logging.getLogger(__name__)


class Incarnation:
    """Who this trainer is."""

    def __init__(
        self, folder: Path, *, queue: TrainerQueue, checkpoints: CheckpointStore, store: WeightStore
    ) -> None:
        """`folder` holds the claims; nothing is claimed yet."""
        self._folder, self._queue = folder, queue
        self._checkpoints, self._store = checkpoints, store
        self._claimed = 0
        self.lineage: tuple[Ancestor, ...] = ()
        """Incarnations whose weights count, this one the last."""

    @property
    def incarnation(self) -> int:
        """The number claimed."""
        return self._claimed

    def version(self, update: int) -> WeightVersion:
        """The name of this incarnation's weights behind so many updates."""
        return WeightVersion(self._claimed, update)

    def claim(self, patience: Patience) -> Checkpoint | None:
        """Claims an incarnation, takes the fence, and only then looks for the newest checkpoint.

        From then on no older incarnation takes up any more, so none is missing from the lineage.
        """
        known = [patience.call(self._queue.known_incarnation)]
        known += [version.incarnation for version in self._checkpoints.versions()]
        known += [version.incarnation for version in self._store.versions()]
        self._take(1 + max(known), patience)
        self.lineage = lineage.read(self._folder)
        return self._checkpoints.load_newest(self.lineage)

    def claim_again(self, patience: Patience, *, newest: int) -> Checkpoint | None:
        """Claims another incarnation, to go back to a checkpoint of at most `newest` updates."""
        self._take(1 + self._claimed, patience)
        return self._checkpoints.load_newest((*self.lineage, Ancestor(self._claimed, newest)))

    def begin(self, update: int) -> None:
        """Writes down where this incarnation takes up: what came behind it leaves the lineage.

        Raises:
            Fenced: if a newer incarnation was claimed meanwhile, which knows nothing of this one.
        """
        self.confirm()
        lineage.record_resume(self._folder, self._claimed, resumed_from=update)
        self.lineage = (*self.lineage, Ancestor(self._claimed, update))
        logger.info("incarnation %d begins at update %d", self._claimed, update)

    def confirm(self) -> None:
        """Looks whether this is still the newest incarnation.

        Raises:
            Fenced: if it is not.
        """
        newest = max(lineage.claimed(self._folder))
        if newest > self._claimed:
            raise Fenced(f"incarnation {newest} of the trainer has taken over from {self._claimed}")

    def _take(self, at_least: int, patience: Patience) -> None:
        self._claimed = number = lineage.claim(self._folder, at_least=at_least)
        patience.call(lambda: self._queue.take_fence(number))
        lineage.shut_out(self._folder, number)
