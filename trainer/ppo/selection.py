"""Select the open tasks that the next update trains on, and those it has to wait for. Arithmetic on versions.

The rule: the tasks dispatched first come first, and an update waits for every open task that would otherwise
become too stale. Training on what finishes first would starve long answers: they would be dropped and sent
again endlessly.

B is the batch size; updates are numbered from 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence


def next_batch(
    deadlines: Mapping[int, int], finished: Collection[int], *, update: int, size: int
) -> list[int] | None:
    """Return the tasks of a batch in order, or None if the update has to wait for a task.

    Two candidates are tried in turn: the B finished tasks that were dispatched first, then the B finished
    tasks that become too stale first. A candidate is taken if every remaining task, finished or not, can
    still be trained by its deadline with B tasks per update. After a fault there may be no such batch (more
    than B tasks must be trained now): then the tasks that become too stale first are taken, once all of them
    are finished.

    Args:
        deadlines: open task → the last update that may train it. For an unfinished task it is computed from
            the weights at its dispatch, which may be the ones that answer it.
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
    """Return whether later updates can train every task outside this batch by its deadline."""
    taken = set(batch)
    remaining = sorted(deadline for task_id, deadline in deadlines.items() if task_id not in taken)
    # Earliest deadline first is optimal: for every k, the updates up to k hold all tasks that are due by k.
    return all(bisect_right(remaining, last) <= (last - update) * size for last in set(remaining))
