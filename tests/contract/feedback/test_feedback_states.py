"""Random histories against an oracle: undo, tie, skip, late work, revision, withdrawal, forgetting."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fairlead.errors import Conflict
from services.feedback.store.judged import COUNTING, HANDED_IN, Filter, Ranking
from services.feedback.store.records import Offer
from tests.feedback_world import open_world, ranking_task, schema_of

PEOPLE = ("anna", "ben", "carl")
TASKS = 4


class History(RuleBasedStateMachine):
    """People who take, hand in, skip, revise and withdraw, in any order and at any time."""

    server: ClassVar[str] = ""
    """Address of PostgreSQL; a file of SQLite if empty."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="feedback-"))
        file = str(self.folder / "feedback.db")
        address = schema_of(self.server, f"h{secrets.token_hex(6)}") if self.server else file
        self.world = open_world(address, self.folder)
        self.said: dict[str, dict[str, int]] = {}
        """Ranks by text that count, by task and person."""
        self.late: set[str] = set()
        self.handed_in: dict[str, str] = {}
        """Newest entry by task and person."""
        self.offers: dict[str, Offer] = {}
        self.forgotten: set[str] = set()

    def teardown(self) -> None:
        self.world.store.close()
        shutil.rmtree(self.folder)

    @initialize(overlap=st.integers(1, 2))
    def project(self, overlap: int) -> None:
        self.settings = self.world.project(overlap=overlap, lease_seconds=10, revise_seconds=1e9)
        self.tasks = self.world.add(self.settings, *(ranking_task(f"task {n}", k=2) for n in range(TASKS)))
        for handle in PEOPLE:
            self.world.person(handle)

    @rule(handle=st.sampled_from(PEOPLE))
    def take(self, handle: str) -> None:
        if handle in self.forgotten:
            return
        offer = self.world.store.leases.take(self.world.person(handle), self.settings.id)
        if offer is not None:
            self.offers[f"{offer.assignment.task} {handle}"] = offer

    @rule(data=st.data(), ranks=st.tuples(st.integers(1, 2), st.integers(1, 2)))
    def hand_in(self, data: st.DataObject, ranks: tuple[int, int]) -> None:
        key = self._some(data, self.offers)
        if key is None:
            return
        offer = self.offers[key]
        said = Ranking({answer: rank for (answer, _), rank in zip(sorted(offer.answers), ranks, strict=True)})
        try:
            receipt = self.world.store.judgments.hand_in(offer.assignment.id, offer.assignment.person, said)
        except Conflict:
            assert key not in self.said
            return
        if not receipt.repeated:
            self.said[key] = dense(said)
            self.handed_in[key] = receipt.entry
            if receipt.late:
                self.late.add(key)

    @rule(data=st.data(), reason=st.sampled_from(["unclear", "harmful"]))
    def skip(self, data: st.DataObject, reason: str) -> None:
        key = self._some(data, self.offers)
        if key is None:
            return
        offer = self.offers[key]
        try:
            self.world.store.judgments.skip(offer.assignment.id, offer.assignment.person, reason)
        except Conflict:
            assert key in self.handed_in
        else:
            assert key not in self.handed_in

    @rule(data=st.data(), ranks=st.tuples(st.integers(1, 2), st.integers(1, 2)))
    def revise(self, data: st.DataObject, ranks: tuple[int, int]) -> None:
        key = self._some(data, self.said)
        if key is None:
            return
        offer = self.offers[key]
        said = Ranking({answer: rank for (answer, _), rank in zip(sorted(offer.answers), ranks, strict=True)})
        receipt = self.world.store.judgments.revise(self.handed_in[key], offer.assignment.person, said)
        assert receipt.late == (key in self.late)
        self.said[key] = dense(said)
        self.handed_in[key] = receipt.entry

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        key = self._some(data, self.said)
        if key is None:
            return
        self.world.store.judgments.withdraw(self.handed_in[key], self.offers[key].assignment.person)
        del self.said[key]

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        left = [handle for handle in PEOPLE if handle not in self.forgotten]
        if len(left) < len(PEOPLE):
            return
        handle = data.draw(st.sampled_from(left))
        self.world.store.erasures.forget("person", self.world.person(handle), actor="admin")
        self.forgotten.add(handle)
        for found in (self.said, self.offers):
            for key in [key for key in found if key.endswith(handle)]:
                del found[key]

    @rule(seconds=st.sampled_from([1.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.seconds += seconds

    @invariant()
    def what_counts_is_what_was_said_last(self) -> None:
        found = {
            f"{one.task.id} {self._handle(one.entry.person or '')}": (one.entry.body or {})["ranks"]
            for one in self.world.store.snapshots.judged(Filter(self.settings.id))
        }
        assert found == self.said

    @invariant()
    def a_snapshot_equals_the_oracle_over_the_log(self) -> None:
        entries = self.world.store.log.entries()
        replaced = {entry.replaces for entry in entries}
        oracle = [
            entry.id
            for entry in entries
            if entry.kind in COUNTING and entry.id not in replaced and entry.body is not None
        ]
        if oracle:
            digest = self.world.store.snapshots.make(Filter(self.settings.id)).digest
            assert self.world.store.snapshots.entries(digest) == oracle
            assert self.world.store.snapshots.make(Filter(self.settings.id)).digest == digest

    @invariant()
    def no_task_has_more_than_it_wants_and_closed_ones_have_all(self) -> None:
        for task in self.world.store.tasks.page(self.settings.id):
            entries = self.world.store.log.of_task(task.id)
            people = [entry.person for entry in entries if entry.kind in HANDED_IN]
            assert len(people) == len(set(people))
            in_time = {key for key in self.said if key.startswith(task.id)} - self.late
            assert len(in_time) <= task.overlap
            assert (task.state == "closed") == (len(in_time) == task.overlap)

    @invariant()
    def the_chain_holds(self) -> None:
        self.world.store.log.verify()

    def _some(self, data: st.DataObject, found: dict[str, object]) -> str | None:
        return data.draw(st.sampled_from(sorted(found))) if found else None

    def _handle(self, person: str) -> str:
        return next(handle for handle, known in self.world.people.items() if known.id == person)


def dense(said: Ranking) -> dict[str, int]:
    """Return ranks without gaps."""
    ranks = sorted(set(said.ranks.values()))
    return {answer: ranks.index(rank) + 1 for answer, rank in said.ranks.items()}


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
def test_history_on_postgres(postgres: tuple[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(History, "server", postgres[0])
    run_state_machine_as_test(History, settings=TestHistory.settings)
