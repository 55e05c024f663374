"""Faults of workers, leases and the queue, as rules of the state machine.

Crashes, expired leases, clock jumps; a queue that loses or restores entries, loses keys or its group,
restarts with or without its append-only file, or goes back to an earlier state.
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


class FaultyQueueMachine(QueueMachine):
    """The machine with all faults."""

    def __init__(self) -> None:
        super().__init__()
        self.lost_prompts: list[tuple[Callable[[], str], int, Sending]] = []
        self.lost_outcomes: list[tuple[Callable[[], str], bool]] = []
        self.copies: list[
            tuple[Callable[[], None], Model, dict[tuple[int, Sending], str], list[set[str]]]
        ] = []

    @rule(worker=workers)
    def crash(self, worker: str) -> None:
        """Crash a worker: its consumer stays while it holds an entry; its leases expire."""
        self.loop.run_until_complete(self.queues[worker].close())
        held = [name for name, entry in self.model.entries.items() if entry.owner == worker]
        consumers = self.world.consumers()
        assert consumers is None or (worker in consumers) == bool(held)
        for name in held:
            self.expire(name)
        self.start_worker(worker)

    @rule(number=picks)
    def lease_expires(self, number: int) -> None:
        held = [name for name, entry in self.model.entries.items() if entry.owner]
        if held:
            self.expire(held[number % len(held)])

    @rule(forward=st.booleans())
    def jump_clock(self, forward: bool) -> None:
        """Move the server's clock: forward, all leases expire; back, they all look as if just renewed.

        Entries that were given back are so old that only a jump of a hundred days could make them look held.
        """
        for name, entry in self.model.entries.items():
            if entry.owner and forward:
                self.expire(name)
            elif entry.owner and entry.owner != RETURNED and entry.present:
                self.world.age(name, entry.owner, milliseconds=0)
                entry.expired = False

    @rule(number=picks, briefly=st.booleans())
    def lose_prompt(self, number: int, briefly: bool) -> None:
        prompts = self.world.prompts()
        if prompts:
            entry, task, sending = prompts[number % len(prompts)]
            self.lost_prompts.append((self.world.drop_prompt(entry), task, sending))
            self.model.entries[entry].present = False
            self.intact = False
            if briefly:
                self.restore_prompt(len(self.lost_prompts) - 1)

    @rule(number=picks)
    def lose_outcome(self, number: int) -> None:
        outcomes = self.world.outcomes()
        if outcomes:
            entry, _, _, _ = outcomes[number % len(outcomes)]
            self.lost_outcomes.append((self.world.drop_outcome(entry), entry in self.broken))
            self.intact = False

    @rule(number=picks, cut=st.booleans())
    def damage_prompt_entry(self, number: int, cut: bool) -> None:
        """Damage a prompt. Nothing is lost: the worker that claims it reports it; the task is sent again."""
        prompts = self.world.prompts()
        if prompts:
            entry, _, _ = prompts[number % len(prompts)]
            if not self.model.entries[entry].damaged:
                self.world.damage_prompt(entry, cut=cut)
                self.model.entries[entry].damaged = True

    @rule(number=picks, cut=st.booleans())
    def damage_outcome_entry(self, number: int, cut: bool) -> None:
        outcomes = self.world.outcomes()
        if outcomes:
            entry, _, _, _ = outcomes[number % len(outcomes)]
            if entry not in self.broken:
                self.world.damage_outcome(entry, cut=cut)
                self.broken.add(entry)

    @rule(worker=workers)
    def lose_consumer_of(self, worker: str) -> None:
        """Delete a consumer: its entries are neither pending nor new, so no worker will ever claim them."""
        self.world.drop_consumer(worker)
        self.model.lose_consumer(worker)
        self.intact = False

    @rule(what=st.sampled_from(KEYS))
    def lose_key(self, what: str) -> None:
        self.world.drop(what)
        self.intact = False
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
    def restore_prompt(self, number: int) -> None:
        bring_back, task, sending = self.lost_prompts[number % len(self.lost_prompts)]
        self.model.entries[bring_back()] = Entry(task, sending)

    @rule(number=picks)
    @precondition(lambda self: self.lost_outcomes)
    def restore_outcome(self, number: int) -> None:
        bring_back, is_broken = self.lost_outcomes[number % len(self.lost_outcomes)]
        entry = bring_back()
        self.injected.add(entry)
        if is_broken:
            self.broken.add(entry)

    @rule()
    def copy_state(self) -> None:
        """Copy the state, as a replica that lags from here on."""
        marked = copy.deepcopy([self.injected, self.broken])
        copies = (self.world.keep(), copy.deepcopy(self.model), dict(self.appended), marked)
        self.copies.append(copies)

    @rule(number=picks)
    @precondition(lambda self: self.copies)
    def go_back_to_copy(self, number: int) -> None:
        """Promote the replica, or cut the AOF: everything after the copy is lost, leases included."""
        go_back, model, appended, marked = self.copies[number % len(self.copies)]
        go_back()
        self.model, self.appended = copy.deepcopy(model), dict(appended)
        self.injected, self.broken = copy.deepcopy(marked)
        self.after_a_loss()

    def after_a_loss(self) -> None:
        """Continue as a trainer that lost its connection: read from the head."""
        self.intact = False
        self.last_outcome = "0"

    @rule(with_data=st.booleans(), chance=st.integers(0, 3))
    def restart_server(self, with_data: bool, chance: int) -> None:
        """Restart the server: with its append-only file nothing is lost, without it everything."""
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
