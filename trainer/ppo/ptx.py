"""PPO-ptx: demonstrations whose cross-entropy is mixed into every optimizer step (InstructGPT, section 3.5).

Knows no files; the cursor, how many were drawn, is part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer import seeds
from trainer.sequences import TokenSequence


class DemonstrationStream:
    """Demonstrations without end, in a new permutation every epoch."""

    def __init__(self, sequences: Sequence[TokenSequence], *, seed: int) -> None:
        """`sequences` is not empty."""
        self._sequences, self._seed = sequences, seed
        self.cursor = 0
        """Demonstrations drawn so far."""
        self._epoch, self._order = -1, list[int]()

    def take(self, count: int) -> list[TokenSequence]:
        """The next ones."""
        found = []
        for number in range(self.cursor, self.cursor + count):
            epoch, position = divmod(number, len(self._sequences))
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = seeds.permutation(len(self._sequences), self._seed, "ptx", epoch)
            found.append(self._sequences[self._order[position]])
        self.cursor += count
        return found
