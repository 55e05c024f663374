"""Stop training whose numbers are not finite: skipped steps are counted, weights are checked before writing.

Used by every stage. A step with a loss or gradient of NaN or infinity changes no weight (`optim`); without
loss scaling such a step is never part of healthy training, so a few of them in a row end the stage.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fairlead.errors import NotFinite
from trainer.distributed.collectives import smallest
from trainer.distributed.group import Group
from trainer.distributed.sharding import local

logger = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 3
"""Steps in a row without a finite loss and gradient that end a stage: one bad batch passes."""


class FiniteSteps:
    """Counts the optimizer steps in a row that were skipped."""

    def __init__(self, stage: str, *, rate: str) -> None:
        """
        Args:
            stage: the stage, for messages.
            rate: the keys of the learning rates, for messages.
        """
        self._stage = stage
        self._rate = rate
        self._skipped = 0
        self._fault = ""

    def check(self, numbers: Mapping[str, float], *, where: str) -> bool:
        """Return whether all numbers of a step are finite; if one is not, the step was skipped.

        Args:
            numbers: losses and gradient norms of the step, by their names in messages, causes before effects.
            where: the step, for messages: `step 7`.

        Raises:
            NotFinite: if this was step `MAX_SKIPPED_STEPS` in a row that was skipped.
        """
        cause = next(
            (f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)), ""
        )
        if not cause:
            self._skipped = 0
            return True
        self._skipped += 1
        self._fault = f"{self._stage}: {cause} at {where}"
        if self._skipped == MAX_SKIPPED_STEPS:
            self.check_ended()
        logger.warning("%s: the step is skipped", self._fault)
        return False

    def check_ended(self) -> None:
        """Check, before a result is written, that the last step was not skipped.

        Raises:
            NotFinite: if it was.
        """
        if self._skipped:
            steps = f"the last {self._skipped} optimizer steps were" if self._skipped > 1 else "that step was"
            raise NotFinite(
                f"{self._fault}, and {steps} skipped: lower {self._rate}, or start from another model"
            )


def check_mean(stage: str, name: str, value: float) -> None:
    """Check the mean loss of an epoch, which one step that is not finite makes so.

    Raises:
        NotFinite: if it is not finite.
    """
    if not math.isfinite(value):
        raise NotFinite(
            f"{stage}: the {name} of the epoch is {value}: lower {stage}.learning_rate, "
            "or start from another model"
        )


def check_weights(tensors: Mapping[str, Tensor], *, what: str, rate: str, group: Group | None = None) -> None:
    """Check that every floating-point tensor is finite.

    Args:
        tensors: weights by name.
        what: what they belong to, for the message: `the policy`.
        rate: the key of the learning rate, for the message.
        group: the ranks that hold parts of them, all of which get the same answer.

    Raises:
        NotFinite: if one is not; names the first.
    """
    names = list(tensors)
    floats = {
        number: local(tensor.detach())
        for number, tensor in enumerate(tensors.values())
        if tensor.is_floating_point()
    }
    floats = {number: tensor for number, tensor in floats.items() if tensor.numel()}
    first = len(names)
    if floats:
        # NaN is the least and the greatest of any tensor that contains it; one transfer from the device for
        # all.
        bounds = torch.stack([torch.stack(torch.aminmax(tensor)).float() for tensor in floats.values()])
        finite = bounds.isfinite().all(1).tolist()
        first = next((number for number, good in zip(floats, finite, strict=True) if not good), first)
    first = first if group is None else smallest(first, group)
    if first < len(names):
        raise NotFinite(
            f"{what} has weights that are not finite ({names[first]}), which are not written: lower {rate}, "
            "or start from another model"
        )
