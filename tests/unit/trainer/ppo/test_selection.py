"""Selection of batches in asynchronous mode: against brute force, and simulated with random durations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.config.training import PpoSection
from trainer.ppo.progress import TrainingProgress
from trainer.ppo.selection import next_batch


def can_be_trained(deadlines: list[int], *, first: int, size: int) -> bool:
    """Return whether updates `first`, `first` + 1, … of `size` tasks can keep every deadline; tries all."""
    if not deadlines:
        return True
    chosen = min(size, len(deadlines))
    for taken in itertools.combinations(range(len(deadlines)), chosen):
        if all(deadlines[index] >= first for index in taken):
            rest = [deadline for index, deadline in enumerate(deadlines) if index not in taken]
            if can_be_trained(rest, first=first + 1, size=size):
                return True
    return False


@settings(max_examples=150, deadline=None)
@given(
    tasks=st.lists(st.tuples(st.integers(3, 7), st.booleans()), min_size=1, max_size=6),
    size=st.integers(1, 3),
)
def test_next_batch_matches_brute_force(tasks, size):
    deadlines = {task_id: deadline for task_id, (deadline, _) in enumerate(tasks)}
    finished = {task_id for task_id, (_, done) in enumerate(tasks) if done}
    number = min(size, len(deadlines))

    def is_good(batch: tuple[int, ...]) -> bool:
        rest = [deadline for task_id, deadline in deadlines.items() if task_id not in batch]
        return can_be_trained(rest, first=5, size=number)

    batch = next_batch(deadlines, finished, update=4, size=size)
    good = [choice for choice in itertools.combinations(sorted(finished), number) if is_good(choice)]
    if good:
        assert batch is not None
        assert is_good(tuple(batch))
        oldest = tuple(sorted(finished)[:number])
        assert tuple(batch) == oldest or not is_good(oldest)
    elif is_good(tuple(sorted(deadlines, key=lambda task_id: (deadlines[task_id], task_id))[:number])):
        assert batch is None
    else:  # more tasks are due than fit: waiting for others would not help
        most_urgent = set(sorted(deadlines, key=lambda task_id: (deadlines[task_id], task_id))[:number])
        assert (batch is None) is (not most_urgent <= finished)
    if batch is not None:
        assert batch == sorted(set(batch))
        assert set(batch) <= finished
        assert len(batch) == number


Choice = Callable[..., list[int] | None]


@dataclass
class Simulation:
    """Trainer and workers in discrete time; an answer is sampled by the weights since its start."""

    section: PpoSection
    durations: list[int]
    """Of answer n: the n-th modulo the length, in ticks."""
    slots: int
    """Answers made at the same time."""
    training_ticks: int
    choose: Choice = next_batch
    trained: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Task → update that trained it, update of its oldest token."""
    dispatched_at: dict[int, int] = field(default_factory=dict)
    widest: int = 0
    """Most tasks that were open."""
    clock: int = 0

    def run(self) -> None:
        size, staleness = self.section.batch_size, self.section.max_staleness
        progress = TrainingProgress()
        self._waiting: list[int] = []
        self._running: dict[int, int] = {}
        self._begun_at: dict[int, int] = {}
        finished: set[int] = set()
        self._admit(progress)
        while progress.update < self.section.updates:
            deadlines = {
                task_id: staleness
                + (self._begun_at[task_id] if task_id in finished else self.dispatched_at[task_id])
                for task_id in progress.open_tasks()
            }
            batch = self.choose(deadlines, finished, update=progress.update, size=size)
            if batch is None:
                assert self._running, "the trainer waits, and nobody works"
                finished |= self._pass(min(self._running.values()) - self.clock, progress.update)
                continue
            finished |= self._pass(self.training_ticks, progress.update)
            for task_id in batch:
                self.trained[task_id] = progress.update, self._begun_at[task_id]
                progress.ledger.settle(task_id)
            finished -= set(batch)
            progress.update += 1
            self._admit(progress)

    def _admit(self, progress: TrainingProgress) -> None:
        new = progress.open_new_tasks(self.section)
        self._waiting += new
        self.dispatched_at |= dict.fromkeys(new, progress.update)
        self.widest = max(self.widest, len(progress.open_tasks()))
        self._start(progress.update)

    def _start(self, update: int) -> None:
        while self._waiting and len(self._running) < self.slots:
            task_id = self._waiting.pop(0)
            self._begun_at[task_id] = update
            self._running[task_id] = self.clock + self.durations[task_id % len(self.durations)]

    def _pass(self, ticks: int, update: int) -> set[int]:
        """Advance the time; return the tasks that finished."""
        end, done = self.clock + ticks, set()
        while self._running and min(self._running.values()) <= end:
            task_id = min(self._running, key=lambda other: (self._running[other], other))
            self.clock = self._running.pop(task_id)
            done.add(task_id)
            self._start(update)
        self.clock = end
        return done


def section(*, updates: int, size: int, staleness: int) -> PpoSection:
    return PpoSection(updates=updates, batch_size=size, mini_batch_size=size, max_staleness=staleness)


@settings(max_examples=75, deadline=None)
@given(
    updates=st.integers(1, 12),
    size=st.integers(1, 4),
    staleness=st.integers(0, 4),
    durations=st.lists(st.one_of(st.integers(1, 20), st.integers(200, 2_000)), min_size=1, max_size=9),
    slots=st.integers(1, 12),
    training_ticks=st.integers(0, 30),
)
def test_simulated_tasks_are_trained_once_and_in_time(
    updates, size, staleness, durations, slots, training_ticks
):
    world = Simulation(
        section(updates=updates, size=size, staleness=staleness), durations, slots, training_ticks
    )
    world.run()
    assert sorted(world.trained) == list(range(updates * size))
    assert world.widest <= (staleness + 1) * size
    for task_id, (update, oldest) in world.trained.items():
        assert oldest <= update <= oldest + staleness, f"task {task_id}"
        # No starvation: every dispatched task is trained within max_staleness updates.
        assert update <= world.dispatched_at[task_id] + staleness
        if staleness == 0:
            assert update == task_id // size


def first_finished(
    deadlines: Mapping[int, int], finished: Collection[int], *, update: int, size: int
) -> list[int] | None:
    """The wrong rule: train what finished first."""
    return sorted(finished)[:size] if len(finished) >= min(size, len(deadlines)) else None


def test_training_what_finishes_first_makes_long_answers_too_stale():
    world = Simulation(section(updates=10, size=2, staleness=1), [1, 1, 1, 400], 8, 3, choose=first_finished)
    world.run()
    assert max(update - oldest for update, oldest in world.trained.values()) > 1


def test_asynchronous_training_hides_the_time_of_generation():
    """Ten updates and answers of five ticks each: with staleness 1, only the first update has to wait."""
    times = {}
    for staleness in (0, 1):
        world = Simulation(section(updates=10, size=2, staleness=staleness), [5], 8, 5)
        world.run()
        times[staleness] = world.clock
    assert times == {0: 100, 1: 55}


def test_resumed_run_continues_with_open_tasks():
    progress = TrainingProgress(update=2, cursor=12)
    for task_id in (0, 1, 2, 4, 5, 7, 8, 9):
        progress.ledger.settle(task_id)
    assert progress.open_tasks() == [3, 6, 10, 11]
    assert list(progress.open_new_tasks(section(updates=9, size=4, staleness=2))) == [*range(12, 20)]
    assert list(progress.open_new_tasks(section(updates=9, size=4, staleness=2))) == []
    # Less staleness than before: nothing is sent until fewer tasks are open.
    assert list(progress.open_new_tasks(section(updates=9, size=4, staleness=1))) == []
    # No task is sent that no update would train.
    ending = TrainingProgress(update=8, cursor=12)
    assert list(ending.open_new_tasks(section(updates=9, size=4, staleness=2))) == []
