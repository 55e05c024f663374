"""Runs the batches of the micro-batcher and never raises: of one that fails, every item is tried alone.

Between the batcher and the function that runs the model. Knows no queue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Compute = Callable[[Sequence[_Item]], Sequence[_Result | Exception]]
"""Runs a batch: one result for each item, or the error that is that item's alone."""
Prepare = Callable[[Sequence[_Item]], Callable[[], Sequence[_Result | Exception]]]
"""Builds a batch's tensors; what it returns runs the model."""


class Careful(Generic[_Item, _Result]):
    """A model whose errors belong to the items that cause them."""

    def __init__(self, prepare: Prepare[_Item, _Result]) -> None:
        self._prepare = prepare

    def prepared(self, items: Sequence[_Item]) -> Callable[[], Sequence[_Result | Exception]]:
        """What runs the items and never raises."""
        try:
            compute = self._prepare(items)
        except Exception as error:  # noqa: BLE001 - handed to the callers it belongs to
            failure = error
            return lambda: self._alone(items, failure)

        def run() -> Sequence[_Result | Exception]:
            try:
                results = compute()
                if len(results) != len(items):
                    raise RuntimeError(f"the model gave {len(results)} results for {len(items)} items")
            except Exception as error:  # noqa: BLE001 - handed to the callers it belongs to
                return self._alone(items, error)
            return results

        return run

    def _alone(self, items: Sequence[_Item], error: Exception) -> Sequence[_Result | Exception]:
        if len(items) == 1:
            return [error]
        logger.warning("a batch of %d failed, each is tried alone: %r", len(items), error)
        return [result for item in items for result in self.prepared([item])()]
