"""Judgments of the store: handed in once, revised, withdrawn, adjudicated, followed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fairlead.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
)
from services.feedback.store.judged import Filter, Ranking, Writing
from services.feedback.store.log import Head
from tests.feedback_world import World, ranked, ranking_task


def test_hand_in_is_idempotent(world: World):
    project = world.project(overlap=2)
    world.add(project, ranking_task("one"), ranking_task("two"))
    offer = world.take("anna", project)
    anna = world.person("anna")
    receipt = world.store.judgments.hand_in(offer.assignment.id, anna, ranked(offer), request="r1")
    for request in ("r1", "r2", None):
        again = world.store.judgments.hand_in(
            offer.assignment.id, anna, ranked(offer, note="x"), request=request
        )
        assert again == replace(receipt, repeated=True)
    other = world.take("anna", project)
    with pytest.raises(InvalidInput, match="request"):
        world.store.judgments.hand_in(other.assignment.id, anna, ranked(other), request="r1")
    ben = world.take("ben", project)
    assert not world.store.judgments.hand_in(
        ben.assignment.id, world.person("ben"), ranked(ben), request="r1"
    ).repeated
    assert world.store.log.head().seq == 2
    body = world.store.log.get(receipt.entry).body or {}
    assert body["shown"] == list(offer.assignment.shown)
    assert (body["note"], body["guideline"], sorted(body["ranks"].values())) == ("", 0, [1, 2, 2])


def test_invalid_judgment_is_refused(world: World):
    project = world.project()
    world.add(project, ranking_task())
    offer = world.take("anna", project)
    good = ranked(offer)
    first = offer.answers[0][0]
    bad = [
        (replace(good, ranks={}), "a rank for each of the 3 answers"),
        (replace(good, ranks={**good.ranks, "other": 1}), "ranks"),
        (replace(good, ranks={**good.ranks, first: 4}), "from 1 to 3"),
        (replace(good, ranks={**good.ranks, first: True}), "got True"),
        (replace(good, ratings={first: 8}), "from 1 to 7"),
        (replace(good, ratings={"other": 1}), "ids of the answers"),
        (replace(good, flags={first: ("Not A Word",)}), "flags"),
        (replace(good, strength=5), "strength"),
        (replace(good, note="x" * 10_001), "10001 characters"),
        (replace(good, seconds=math.inf), "seconds"),
        (replace(good, details={"raw": "x" * 1_000_001}), "details"),
        (replace(good, details={"raw": object()}), "JSON"),
        (Writing("text"), "ranks, for a task of kind rank"),
    ]
    for said, message in bad:
        with pytest.raises(InvalidInput, match=message):
            world.store.judgments.hand_in(offer.assignment.id, world.person("anna"), said)
    assert world.store.log.head().seq == 0
    ranks = dict(zip((answer for answer, _ in offer.answers), (3, 1, 3), strict=True))
    world.store.judgments.hand_in(offer.assignment.id, world.person("anna"), Ranking(ranks))
    assert sorted((world.store.log.entries()[0].body or {})["ranks"].values()) == [1, 2, 2]


def test_written_tasks_take_texts(world: World):
    project = world.project()
    world.add(
        project,
        ranking_task("write", kind="write", answers=()),
        ranking_task("edit", kind="edit", k=2),
    )
    anna = world.person("anna")
    offer = world.take("anna", project)
    with pytest.raises(InvalidInput, match="only edits have one"):
        world.store.judgments.hand_in(offer.assignment.id, anna, Writing("x", base="y"))
    with pytest.raises(InvalidInput, match="not blank"):
        world.store.judgments.hand_in(offer.assignment.id, anna, Writing(" "))
    world.store.judgments.hand_in(offer.assignment.id, anna, Writing("sorry\0 ."))
    edit = world.take("anna", project)
    with pytest.raises(InvalidInput, match="an answer of the task"):
        world.store.judgments.hand_in(edit.assignment.id, anna, Writing("better"))
    base = edit.answers[1][0]
    world.store.judgments.hand_in(edit.assignment.id, anna, Writing("better", base=base))
    entries = world.store.log.entries(kinds=["writing"])
    assert [(entry.body or {})["text"] for entry in entries] == ["sorry\0 .", "better"]
    assert world.store.log.entries(kinds=["judgment"]) == []


def test_revision_and_withdrawal_replace_and_reopen(world: World):
    project = world.project(revise_seconds=100)
    (task,) = world.add(project, ranking_task())
    offer = world.take("anna", project)
    anna = world.person("anna")
    first = world.store.judgments.hand_in(offer.assignment.id, anna, ranked(offer)).entry
    said = ranked(offer, note="better")
    second = world.store.judgments.revise(first, anna, said, request="a")
    assert world.store.judgments.revise(first, anna, said, request="a").repeated
    with pytest.raises(Conflict, match=f"replaced by the revision {second.entry}"):
        world.store.judgments.revise(first, anna, said)
    with pytest.raises(NotFound):
        world.store.judgments.withdraw(second.entry, world.person("ben"))
    (counting,) = world.store.snapshots.judged(Filter(project.id))
    assert counting.entry.id == second.entry
    assert (counting.entry.body or {})["shown"] == list(offer.assignment.shown)
    world.clock.seconds += 101
    with pytest.raises(Conflict, match="within 100 s"):
        world.store.judgments.withdraw(second.entry, anna)
    world.clock.seconds -= 1
    third = world.store.judgments.withdraw(second.entry, anna, request="b")
    assert world.store.judgments.withdraw(second.entry, anna, request="b").entry == third.entry
    with pytest.raises(NotFound):
        world.store.judgments.revise(third.entry, anna, said)
    assert world.store.snapshots.judged(Filter(project.id)) == []
    assert world.store.tasks.get(task).state == "open"
    assert world.store.leases.take(anna, project.id) is None
    world.judge("ben", project)
    assert world.store.tasks.get(task).state == "closed"
    (ben, counts) = sorted(world.store.figures.labelers(project.id), key=lambda one: one.withdrawn)
    assert (ben.done, counts.withdrawn, counts.revised) == (1, 1, 1)


def test_adjudication_replaces_no_judgment(world: World):
    project = world.project()
    (task,) = world.add(project, ranking_task())
    offer = world.take("anna", project)
    world.store.judgments.hand_in(offer.assignment.id, world.person("anna"), ranked(offer))
    reviewer = world.person("rita", role="reviewer")
    first = world.store.judgments.adjudicate(task, reviewer, ranked(offer), request="1")
    second = world.store.judgments.adjudicate(task, reviewer, ranked(offer))
    assert world.store.judgments.adjudicate(task, reviewer, ranked(offer), request="1").entry == first.entry
    assert world.store.log.get(second.entry).replaces == first.entry
    assert len(world.store.snapshots.judged(Filter(project.id))) == 1
    with pytest.raises(PermissionDenied, match="labeler does not"):
        world.store.judgments.adjudicate(task, world.person("anna"), ranked(offer))


def test_followers_see_each_entry_once_and_erased_ones_without_content(world: World):
    project = world.project(overlap=9)
    world.add(project, *(ranking_task(f"task {n}") for n in range(3)))
    entries = [world.judge(handle, project) for handle in ("anna", "ben") for _ in range(3)]
    seen, after = [], 0
    while found := world.store.log.entries(after=after, limit=2):
        seen += [entry.id for entry in found]
        after = found[-1].seq
    assert seen == entries
    assert [entry.id for entry in world.store.log.of_person(world.person("ben"), after=4)] == entries[4:]
    assert [one.entry.id for one in world.store.snapshots.judged(Filter(project.id, after=4))] == entries[4:]
    assert world.store.log.head() == Head(6, entries[-1])
    world.store.erasures.forget("person", world.person("anna"), actor="admin")
    bodies = [entry.body for entry in world.store.log.entries()]
    assert [body is None for body in bodies] == [True] * 3 + [False] * 4
