"""Which of the open tasks the next update trains, or for which it has to wait. Pure arithmetic on versions.

The rule: oldest dispatch first, and an update waits for every open task that it would leave behind too stale.
Whatever finishes first would starve long answers: they would be dropped and sent again without end.

B is the batch size; updates are numbered by how many came before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence


def next_batch(
    deadlines: Mapping[int, int], finished: Collection[int], *, update: int, size: int
) -> list[int] | None:
    """The tasks of a batch in order, or None: some task has to be waited for.

    Tried in turn: the B finished tasks that were dispatched first; the B finished ones that become too stale
    first. A batch is taken if every task left behind, finished or not, can still be trained by its deadline
    with B a batch. After a fault no batch may do (more than B tasks must be trained now): then those that
    become too stale first are taken, when they are finished.

    Args:
        deadlines: open task → the last update that may train it. That of an unfinished task is reckoned
            from the weights at its dispatch, as it may be answered by them.
        finished: the open tasks whose outcome has arrived.
        update: the number of this update.
        size: B; fewer are taken if fewer are open.
    """
    size = min(size, len(deadlines))
    in_order = sorted(finished)
    by_deadline = sorted(finished, key=lambda task_id: (deadlines[task_id], task_id))
    for candidates in (in_order, by_deadline):
        batch = candidates[:size]
        if len(batch) == size and _can_wait(deadlines, batch, update=update, size=size):
            return sorted(batch)
    most_urgent = sorted(deadlines, key=lambda task_id: (deadlines[task_id], task_id))[:size]
    return sorted(most_urgent) if set(most_urgent) <= set(finished) else None


def _can_wait(deadlines: Mapping[int, int], batch: Sequence[int], *, update: int, size: int) -> bool:
    """Whether the later updates can train what this batch leaves, each task by its deadline."""
    taken = set(batch)
    left = sorted(deadline for task_id, deadline in deadlines.items() if task_id not in taken)
    # Earliest deadline first is optimal: the updates up to k have room for all that ends by k, for every k.
    return all(bisect_right(left, last) <= (last - update) * size for last in set(left))
