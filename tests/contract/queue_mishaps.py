"""What befalls workers, leases and the queue, as rules of the state machine.

Crashes, leases that run out, clocks that jump; a queue that loses entries, keys or its group, brings entries
back, restarts with its append-only file and without, or goes back to what it was a while ago.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from fairlead.transports.rollouts.base import Sending
from tests.contract.queue_machine import WORKERS, QueueMachine, picks, workers
from tests.contract.queue_model import RETURNED, Entry, Model

KEYS = ("prompts", "rollouts", "outstanding", "fence", "group", "scripts")


class UnluckyQueueMachine(QueueMachine):
    """The machine with everything that can go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.lost_prompts: list[tuple[Callable[[], str], int, Sending]] = []
        self.lost_outcomes: list[tuple[Callable[[], str], bool]] = []
        self.kept: list[tuple[Callable[[], None], Model, dict[tuple[int, Sending], str], list[set[str]]]] = []

    @rule(worker=workers)
    def crash(self, worker: str) -> None:
        """Its consumer stays while it holds something; its leases run out."""
        self.loop.run_until_complete(self.queues[worker].close())
        held = [name for name, entry in self.model.entries.items() if entry.owner == worker]
        consumers = self.world.consumers()
        assert consumers is None or (worker in consumers) == bool(held)
        for name in held:
            self.lease_of(name)
        self.start_worker(worker)

    @rule(number=picks)
    def lease_runs_out(self, number: int) -> None:
        held = [name for name, entry in self.model.entries.items() if entry.owner]
        if held:
            self.lease_of(held[number % len(held)])

    @rule(forward=st.booleans())
    def clock_jumps(self, forward: bool) -> None:
        """The server's clock: on, all leases have run out; back, they all look as if just renewed.

        What was given back lies so far in the past that only a jump of a hundred days could hide it.
        """
        for name, entry in self.model.entries.items():
            if entry.owner and forward:
                self.lease_of(name)
            elif entry.owner and entry.owner != RETURNED and entry.present:
                self.world.age(name, entry.owner, milliseconds=0)
                entry.expired = False

    @rule(number=picks, for_a_moment=st.booleans())
    def loses_a_prompt(self, number: int, for_a_moment: bool) -> None:
        prompts = self.world.prompts()
        if prompts:
            entry, task, sending = prompts[number % len(prompts)]
            self.lost_prompts.append((self.world.drop_prompt(entry), task, sending))
            self.model.entries[entry].present = False
            self.sound = False
            if for_a_moment:
                self.brings_a_prompt_back(len(self.lost_prompts) - 1)

    @rule(number=picks)
    def loses_an_outcome(self, number: int) -> None:
        outcomes = self.world.outcomes()
        if outcomes:
            entry, _, _, _ = outcomes[number % len(outcomes)]
            self.lost_outcomes.append((self.world.drop_outcome(entry), entry in self.broken))
            self.sound = False

    @rule(number=picks, cut=st.booleans())
    def damages_a_prompt(self, number: int, cut: bool) -> None:
        """Nothing is lost by it: whoever claims it says so, and its task is sent again."""
        prompts = self.world.prompts()
        if prompts:
            entry, _, _ = prompts[number % len(prompts)]
            if not self.model.entries[entry].damaged:
                self.world.damage_prompt(entry, cut=cut)
                self.model.entries[entry].damaged = True

    @rule(number=picks, cut=st.booleans())
    def damages_an_outcome(self, number: int, cut: bool) -> None:
        outcomes = self.world.outcomes()
        if outcomes:
            entry, _, _, _ = outcomes[number % len(outcomes)]
            if entry not in self.broken:
                self.world.damage_outcome(entry, cut=cut)
                self.broken.add(entry)

    @rule(worker=workers)
    def loses_a_consumer(self, worker: str) -> None:
        """What it held is neither pending nor new any more: nobody will ever claim it."""
        self.world.drop_consumer(worker)
        self.model.lose_consumer(worker)
        self.sound = False

    @rule(what=st.sampled_from(KEYS))
    def loses_a_key(self, what: str) -> None:
        self.world.drop(what)
        self.sound = False
        if what == "prompts":
            self.model.lose_prompts()
        elif what == "outstanding":
            self.model.open.clear()
        elif what == "fence":
            self.model.fence = 0
        elif what == "group":
            self.model.lose_group({entry for entry, _, _ in self.world.prompts()})

    @rule(number=picks)
    @precondition(lambda self: self.lost_prompts)
    def brings_a_prompt_back(self, number: int) -> None:
        bring_back, task, sending = self.lost_prompts[number % len(self.lost_prompts)]
        self.model.entries[bring_back()] = Entry(task, sending)

    @rule(number=picks)
    @precondition(lambda self: self.lost_outcomes)
    def brings_an_outcome_back(self, number: int) -> None:
        bring_back, is_broken = self.lost_outcomes[number % len(self.lost_outcomes)]
        entry = bring_back()
        self.injected.add(entry)
        if is_broken:
            self.broken.add(entry)

    @rule()
    def is_copied(self) -> None:
        """A replica falls behind from here on."""
        marked = copy.deepcopy([self.injected, self.broken])
        kept = (self.world.keep(), copy.deepcopy(self.model), dict(self.appended), marked)
        self.kept.append(kept)

    @rule(number=picks)
    @precondition(lambda self: self.kept)
    def goes_back(self, number: int) -> None:
        """The replica is promoted, or the AOF was cut short: what came after is gone, leases included."""
        go_back, model, appended, marked = self.kept[number % len(self.kept)]
        go_back()
        self.model, self.appended = copy.deepcopy(model), dict(appended)
        self.injected, self.broken = copy.deepcopy(marked)
        self.after_a_loss()

    def after_a_loss(self) -> None:
        """The trainer was told that its connection was lost and reads from the head."""
        self.sound = False
        self.last_outcome = "0"

    @rule(with_data=st.booleans(), chance=st.integers(0, 3))
    def restarts(self, with_data: bool, chance: int) -> None:
        """With its append-only file nothing is lost; without it, everything."""
        if chance or not self.world.can_restart():
            return
        for worker in WORKERS:
            self.loop.run_until_complete(self.queues[worker].close())
        self.world.restart(with_data=with_data)
        for worker in WORKERS:
            self.start_worker(worker)
        if not with_data:
            self.model.open.clear()
            self.model.lose_prompts()
            self.model.fence = 0
            self.appended.clear()
            self.injected.clear()
            self.after_a_loss()
