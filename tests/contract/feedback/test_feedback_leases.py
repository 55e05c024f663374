"""Assignments of the store: who gets which task in which order, and what ends a lease."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest

from fairlead.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
)
from services.feedback.store.judged import Filter, Ranking
from services.feedback.store.records import NewAnswer, NewPerson
from tests.feedback_world import World, ranked, ranking_task


def test_take_gives_each_person_the_best_task_they_have_not_had(world: World):
    project = world.project()
    writer = world.person("writer")
    low, high, own = world.add(
        project,
        ranking_task("low"),
        ranking_task("high", priority=5),
        ranking_task("own", priority=9, answers=(NewAnswer("a", author=writer), NewAnswer("b"))),
    )
    first = world.take("writer", project)
    assert first.assignment.task == high
    assert world.take("writer", project) == first
    assert world.take("anna", project).assignment.task == own
    world.store.judgments.hand_in(first.assignment.id, writer, ranked(first))
    assert world.take("writer", project).assignment.task == low
    assert world.store.leases.take(world.person("ben"), project.id) is None
    with pytest.raises(NotFound):
        world.store.leases.get(first.assignment.id, world.person("anna"))
    world.store.people.change(writer, {"state": "paused"})
    with pytest.raises(PermissionDenied, match="paused"):
        world.store.leases.take(writer, project.id)


def test_a_certain_task_is_assigned_for_judgments_from_elsewhere(world: World):
    project = world.project()
    _, second = world.add(project, ranking_task("one"), ranking_task("two"))
    anna = world.person("anna", kind="import")
    offer = world.store.leases.assign(anna, second)
    assert world.store.leases.assign(anna, second) == offer
    with pytest.raises(Conflict, match="no free place"):
        world.store.leases.assign(world.person("ben"), second)
    world.store.judgments.hand_in(offer.assignment.id, anna, ranked(offer))
    assert world.store.leases.assign(anna, second).assignment.state == "done"


def test_order_shown_is_stable_uniform_and_says_nothing_else(world: World):
    project = world.project(overlap=12)
    tasks = world.add(project, *(ranking_task(f"task {n}") for n in range(10)))
    imported = {task: world.store.tasks.get(task).answers for task in tasks}
    orders = Counter()
    for number in range(120):
        offer = world.take(f"p{number % 12}", project)
        assert world.take(f"p{number % 12}", project) == offer
        assert "secret-run" not in repr(offer)
        orders[tuple(imported[offer.assignment.task].index(answer) for answer, _ in offer.answers)] += 1
        world.store.judgments.skip(offer.assignment.id, offer.assignment.person, "unclear")
    # χ² over 6 orders, of 20 each: 25.7 is exceeded by chance once in ten thousand draws.
    assert sum((orders[order] - 20) ** 2 / 20 for order in orders) + 20 * (6 - len(orders)) < 25.7


def test_an_ended_lease_frees_its_place_and_late_work_is_kept(world: World):
    project = world.project()
    (task,) = world.add(project, ranking_task())
    slow = world.take("slow", project)
    world.clock.seconds += 1_799
    assert world.store.leases.take(world.person("quick"), project.id) is None
    assert world.store.leases.renew(slow.assignment.id, world.person("slow")) == world.clock.seconds + 1_800
    world.clock.seconds += 1_801
    quick = world.take("quick", project)
    with pytest.raises(Conflict, match="given to somebody else"):
        world.store.leases.renew(slow.assignment.id, world.person("slow"))
    assert world.store.leases.take(world.person("slow"), project.id) is None
    late = world.store.judgments.hand_in(slow.assignment.id, world.person("slow"), ranked(slow))
    assert (late.late, late.repeated) == (True, False)
    assert world.store.tasks.get(task).state == "open"
    done = world.store.judgments.hand_in(quick.assignment.id, world.person("quick"), ranked(quick))
    assert not done.late
    assert world.store.tasks.get(task).state == "closed"
    progress = world.store.figures.progress(project.id)
    assert (progress.done, progress.late, progress.wanted, progress.tasks) == (1, 1, 0, {"closed": 1})
    both = world.store.snapshots.make(Filter(project.id))
    in_time = world.store.snapshots.make(Filter(project.id, late=False))
    assert world.store.snapshots.entries(both.digest) == [late.entry, done.entry]
    assert world.store.snapshots.entries(in_time.digest) == [done.entry]


def test_late_work_counts_while_its_place_is_free(world: World):
    project = world.project()
    (task,) = world.add(project, ranking_task())
    program = world.store.people.add(NewPerson(kind="simulated", handle="program")).id
    offer = world.store.leases.take(program, project.id)
    assert offer is not None
    assert offer.assignment.until == world.clock.seconds + 60
    world.clock.seconds += 3_600
    again = world.store.leases.take(program, project.id)
    assert again is not None
    assert again.assignment.id == offer.assignment.id
    world.clock.seconds += 3_600
    assert not world.store.judgments.hand_in(offer.assignment.id, program, ranked(offer)).late
    assert world.store.tasks.get(task).state == "closed"


def test_several_tasks_are_taken_and_handed_in_all_or_none(world: World):
    project = world.project()
    world.add(project, *(ranking_task(f"task {number}") for number in range(6)))
    anna, ben = world.person("anna"), world.person("ben")
    mine = world.store.leases.take_many(anna, project.id, count=4)
    assert len(mine) == 4
    assert len(world.store.leases.take_many(ben, project.id, count=4)) == 2  # each has one place
    first = world.take("anna", project)
    again = world.store.leases.take_many(anna, project.id, count=9)
    assert {one.assignment.id for one in again} == {one.assignment.id for one in mine}
    assert first.assignment.id in {one.assignment.id for one in again}
    said = [(one.assignment.id, ranked(one)) for one in mine]
    for wrong, error in (
        ([*said[:3], (said[3][0], Ranking({}))], InvalidInput),
        ([said[0], said[0]], InvalidInput),
        ([said[0], ("unknown", said[1][1])], NotFound),
    ):
        with pytest.raises(error):
            world.store.judgments.hand_in_many(anna, wrong)
        assert world.store.log.head().seq == 0
    single = world.store.judgments.hand_in(*said[0][:1], anna, said[0][1])
    receipts = world.store.judgments.hand_in_many(anna, said)
    assert receipts[0] == replace(single, repeated=True)
    assert [one.repeated for one in receipts[1:]] == [False] * 3
    assert world.store.judgments.hand_in_many(anna, said) == [replace(one, repeated=True) for one in receipts]
    assert [one.id for one in world.store.log.entries()] == [one.entry for one in receipts]
    assert world.store.log.verify().head == world.store.log.head()


def test_skip_frees_the_place_and_the_third_reason_calls_a_reviewer(world: World):
    project = world.project()
    (task,) = world.add(project, ranking_task())
    for number, reason in enumerate(["unclear", "harmful", "unclear", "unclear"]):
        assert world.store.tasks.page(project.id, review=True) == []
        offer = world.take(f"p{number}", project)
        someone = world.person(f"p{number}")
        world.store.leases.save_draft(offer.assignment.id, someone, {"note": "half"})
        receipt = world.store.judgments.skip(offer.assignment.id, someone, reason, note="why")
        assert world.store.judgments.skip(offer.assignment.id, someone, reason).entry == receipt.entry
        assert world.store.leases.take(someone, project.id) is None
        with pytest.raises(Conflict, match="was skipped"):
            world.store.judgments.hand_in(offer.assignment.id, someone, ranked(offer))
    (marked,) = world.store.tasks.page(project.id, review=True)
    assert (marked.id, marked.review) == (task, "unclear")
    assert world.store.figures.progress(project.id).skipped == {"harmful": 1, "unclear": 3}
    assert world.store.tasks.change(task, {"review": None}).review is None
    world.judge("last", project)
    done = world.store.leases.page(world.person("last"), project.id)[0]
    with pytest.raises(Conflict, match="is done"):
        world.store.judgments.skip(done.id, world.person("last"), "unclear")


def test_drafts_are_kept_until_handed_in(world: World):
    project = world.project()
    world.add(project, ranking_task())
    offer = world.take("anna", project)
    anna = world.person("anna")
    for text in ("a", "b\0"):
        world.store.leases.save_draft(offer.assignment.id, anna, {"note": text})
    assert world.store.leases.get(offer.assignment.id, anna).draft == {"note": "b\0"}
    with pytest.raises(InvalidInput, match="draft"):
        world.store.leases.save_draft(offer.assignment.id, anna, {"note": "x" * 1_000_001})
    world.store.judgments.hand_in(offer.assignment.id, anna, ranked(offer))
    assert world.store.leases.get(offer.assignment.id, anna).draft is None
    with pytest.raises(Conflict, match="nothing to save"):
        world.store.leases.save_draft(offer.assignment.id, anna, {})


def test_one_person_with_two_tabs_gets_one_task(world: World):
    project = world.project()
    world.add(project, *(ranking_task(f"task {n}") for n in range(4)))
    anna = world.person("anna")
    found: list[str] = []

    def take() -> None:
        offer = world.store.leases.take(anna, project.id)
        assert offer is not None
        found.append(offer.assignment.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1
