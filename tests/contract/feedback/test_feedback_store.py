"""Both stores keep the same rules: this suite runs against SQLite and against a real PostgreSQL."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.errors import (
    ConfigError,
    Conflict,
    CorruptData,
    InvalidInput,
    NotFound,
    PermissionDenied,
    SchemaTooNew,
    Unauthenticated,
    Unavailable,
)
from fairlead.judgments import agreement
from fairlead.types import Message
from services.feedback.store import open_store
from services.feedback.store.judged import Filter, Ranking, Writing
from services.feedback.store.log import Head
from services.feedback.store.records import NewAnswer, NewPerson, NewTask, ProjectSettings
from tests.feedback_world import World, open_world, prompt, ranked, ranking_task, schema_of


def test_projects_keep_settings_and_guidelines(world: World):
    project = world.project(overlap=3, shared_share=0.25)
    assert world.store.projects.get("help") == project == world.store.projects.get(project.id)
    assert project.settings.overlap == 3
    with pytest.raises(InvalidInput, match="name that no other project has"):
        world.project()
    with pytest.raises(InvalidInput, match=r"max_answers: got 1, allowed: a whole number from 2"):
        world.project("other", max_answers=1)
    with pytest.raises(NotFound, match="there are: help"):
        world.store.projects.get("nothing")
    first = world.store.projects.add_guideline(project.id, "Be kind.\0 \ud800")
    assert world.store.projects.add_guideline(project.id, "Be kind.\0 \ud800") == first
    assert world.store.projects.add_guideline(project.id, "Be brief.").version == 2
    assert [one.text for one in world.store.projects.guidelines(project.id)] == [
        "Be kind.\0 \ud800",
        "Be brief.",
    ]
    anna = world.person("anna")
    for quiz in (None, 0.5, 0.75, 0.25, None):
        world.clock.seconds += 1
        reading = world.store.projects.note_reading(project.id, 2, anna, quiz=quiz)
    assert (reading.version, reading.at, reading.quiz) == (2, world.clock.seconds, 0.75)
    assert world.store.projects.readings(project.id, anna) == [reading]
    with pytest.raises(NotFound, match="no version 3"):
        world.store.projects.note_reading(project.id, 3, anna)
    changed = world.store.projects.change(project.id, replace(project.settings, overlap=2), state="paused")
    assert world.store.projects.all() == [changed]
    assert world.store.projects.change(project.id, changed.settings).state == "paused"
    world.add(project, ranking_task())
    assert world.store.leases.take(world.person("anna"), project.id) is None


def test_invitations_work_once_within_seven_days(world: World):
    anna = world.store.people.add(NewPerson(kind="labeler", handle="anna"))
    assert anna.state == "invited"
    with pytest.raises(PermissionDenied, match="invited"):
        world.store.people.start_session(anna.id)
    void, token = world.store.people.invite(anna.id), world.store.people.invite(anna.id)
    assert world.store.people.accept(token).state == "active"
    for used in (token, void, "unknown", "\ud800"):
        with pytest.raises(Unauthenticated, match="unknown, used or expired"):
            world.store.people.accept(used)
    late = world.store.people.invite(anna.id)
    world.clock.seconds += 7 * 86_400
    with pytest.raises(Unauthenticated):
        world.store.people.accept(late)
    with pytest.raises(InvalidInput, match="handle"):
        world.store.people.add(NewPerson(kind="judge", handle="anna"))
    assert world.store.people.by_handle("anna").id == anna.id
    assert world.store.people.add(NewPerson(kind="judge", handle="judge")).state == "active"


def test_sessions_end_when_idle_after_seven_days_and_with_their_person(world: World):
    anna = world.person("anna")
    token = world.store.people.start_session(anna)
    for _ in range(14):
        world.clock.seconds += 11 * 3_600
        assert world.store.people.of_session(token).id == anna
    world.clock.seconds += 14 * 3_600
    with pytest.raises(Unauthenticated, match="has ended"):
        world.store.people.of_session(token)
    idle, ended, other = (world.store.people.start_session(anna) for _ in range(3))
    world.store.people.end_session(ended)
    with pytest.raises(Unauthenticated):
        world.store.people.of_session(ended)
    world.clock.seconds += 12 * 3_600
    with pytest.raises(Unauthenticated):
        world.store.people.of_session(idle)
    other = world.store.people.start_session(anna)
    world.store.people.change(anna, {"state": "paused"})
    with pytest.raises(Unauthenticated):
        world.store.people.of_session(other)


def test_same_content_imported_twice_has_the_same_id(world: World):
    project = world.project()
    tasks = [ranking_task("one"), ranking_task("two\0\ud800<script>"), ranking_task("one", why="audit")]
    first = world.store.tasks.add(project.id, tasks)
    assert [one.new for one in first] == [True, True, True]
    again = world.store.tasks.add(project.id, [*tasks[::-1], ranking_task("one", round=1)])
    assert [one.new for one in again] == [False, False, False, True]
    assert [one.id for one in again[:3]] == [one.id for one in first[::-1]]
    listed = world.store.tasks.page(project.id)
    assert [task.number for task in listed] == [1, 2, 3, 4]
    assert world.store.tasks.page(project.id, after=3) == listed[3:]
    text = world.store.prompts.get(listed[1].prompt or "").turns[0].content
    assert text == "two\0\ud800<script>"
    assert [answer.text for answer in world.store.tasks.answers(listed[1].id)] == [
        f"answer {number} to {text}" for number in range(3)
    ]


INVALID_TASKS = [
    (ranking_task(k=1), r"tasks\[0\].answers: got 1"),
    (
        ranking_task(k=10, prompt=replace(prompt("x"), turns=(Message("text", "x"),))),
        r"allowed: a whole number from 2 to 9",
    ),
    (ranking_task(k=3, kind="pair"), r"answers: got 3"),
    (ranking_task(k=3, kind="write"), r"answers: got 3"),
    (ranking_task(kind="poem"), r"kind: got 'poem'"),
    (ranking_task(why="gold"), r"gold: got None"),
    (ranking_task(overlap=0), r"overlap: got 0"),
    (ranking_task(answers=(NewAnswer("a"), NewAnswer("a"))), r"two equal texts"),
    (ranking_task(answers=(NewAnswer("a"), NewAnswer("b", sampling={"t": math.nan}))), r"sampling"),
    (ranking_task(answers=(NewAnswer("a"), NewAnswer("b" * 200_001))), r"200001 characters"),
    (ranking_task(answers=(NewAnswer("a"), NewAnswer("b", author="nobody"))), r"no person"),
    (ranking_task(prompt=prompt("x", source="a b")), r"prompt.source"),
    (
        NewTask("rank", replace(prompt("x"), turns=(Message("text", "x"), Message("user", "y")))),
        "role: got 'text'",
    ),
    (NewTask("rank", replace(prompt("x"), turns=(Message("assistant", "hi"),))), "assistant's turn last"),
]


def test_invalid_task_is_refused_before_anything_is_added(world: World):
    project = world.project()
    for task, message in INVALID_TASKS:
        with pytest.raises((InvalidInput, NotFound), match=message):
            world.store.tasks.add(project.id, [task])
    assert world.store.tasks.page(project.id) == []
    assert world.store.prompts.page() == []


def test_collected_prompts_are_screened_before_they_are_shown(world: World):
    project = world.project()
    secret = prompt("my card is 4111", state="new", subject=world.store.subject("user 17"))
    (added,) = world.store.prompts.add([secret])
    masked = world.store.prompts.screen(added.id, "screened", masked=[Message("user", "my card is [card]")])
    assert masked.subject == world.store.subject("user 17")
    assert world.store.prompts.page(subject=masked.subject or "") == [masked]
    assert world.store.prompts.count(masked.subject or "") == 1
    with pytest.raises(NotFound):
        world.store.prompts.get(added.id)
    (waiting,) = world.store.prompts.add([prompt("hello", state="new")])
    world.add(project, ranking_task("hello"))
    assert world.store.leases.take(world.person("anna"), project.id) is None
    with pytest.raises(InvalidInput, match="in use"):
        world.store.prompts.screen(waiting.id, "screened", masked=[Message("user", "other")])
    world.store.prompts.screen(waiting.id, "screened")
    assert world.take("anna", project).turns == (Message("user", "hello"),)
    world.store.prompts.screen(waiting.id, "rejected")
    assert world.store.leases.take(world.person("anna"), project.id) is None


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


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_what_no_database_can_hold_is_refused_by_both(world: World, name: str):
    project = world.project().id
    for call in (
        world.store.projects.get,
        world.store.tasks.get,
        world.store.people.get,
        world.store.log.get,
    ):
        with pytest.raises(InvalidInput, match="without NUL"):
            call(name)
    with pytest.raises(InvalidInput, match="64 bits"):
        world.store.tasks.page(project, after=2**63)
    assert world.store.tasks.page(project, after=2**63 - 1) == []


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


def test_gold_is_interleaved_by_its_share_and_never_closes(world: World):
    project = world.project(gold_share=0.25)
    golds = world.add(
        project,
        *(ranking_task(f"gold {n}", why="gold", gold={"best": 1}, priority=9) for n in range(30)),
    )
    world.add(project, *(ranking_task(f"task {n}") for n in range(60)))
    had = Counter()
    for _ in range(48):
        offer = world.take("anna", project)
        had[offer.assignment.task in golds] += 1
        world.store.judgments.hand_in(offer.assignment.id, world.person("anna"), ranked(offer))
    # Four standard deviations of a binomial draw.
    assert abs(had[True] - 12) < 12
    assert {world.store.tasks.get(task).state for task in golds} == {"open"}
    assert world.store.figures.progress(project.id).tasks == {"closed": had[False], "open": 60 - had[False]}
    assert len(world.store.snapshots.judged(Filter(project.id))) == had[False]


def test_shared_tasks_are_drawn_by_their_share(world: World):
    project = world.project(overlap=3, shared_share=0.2)
    tasks = world.add(project, *(ranking_task(f"task {n}") for n in range(100)))
    shared = sum(world.store.tasks.get(task).overlap == 3 for task in tasks)
    assert abs(shared - 20) < 16
    assert world.store.tasks.get(world.add(project, ranking_task("explicit", overlap=5))[0]).overlap == 5


def test_overlap_and_priority_can_be_changed(world: World):
    project = world.project()
    one, two = world.add(project, ranking_task("one"), ranking_task("two"))
    world.judge("anna", project)
    assert world.store.tasks.change(one, {"overlap": 2, "priority": 9}).state == "open"
    assert world.take("ben", project).assignment.task == one
    assert world.store.tasks.change(one, {"overlap": 1}).state == "closed"
    assert world.store.tasks.change(two, {"state": "withdrawn"}).state == "withdrawn"
    assert world.store.leases.take(world.person("carl"), project.id) is None
    with pytest.raises(InvalidInput, match="state"):
        world.store.tasks.change(two, {"state": "closed"})


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


def damaged_and_verified(world: World, statement: str) -> None:
    with world.store._database.writing() as connection:
        connection.run(statement)
        world.store.log.verify_within(connection, None)


def test_verify_finds_every_change(world: World):
    project = world.project()
    world.add(project, *(ranking_task(f"task {n}") for n in range(4)))
    entries = [world.judge("anna", project) for _ in range(4)]
    world.store.snapshots.make(Filter(project.id))
    head = world.store.log.head()
    verified = world.store.log.verify(head)
    assert (verified.head, verified.erased, verified.snapshots) == (head, 0, 1)
    with pytest.raises(CorruptData, match="was published"):
        world.store.log.verify(Head(4, "0" * 64))
    with pytest.raises(CorruptData, match="ends at entry 4, but entry 5"):
        world.store.log.verify(Head(5, "0" * 64))
    database = world.store._database
    for statement in ("UPDATE entry SET at = 0", "DELETE FROM entry", "UPDATE content SET body = '{}'"):
        with pytest.raises(Exception, match="cannot be|not changed"), database.writing() as connection:
            connection.run(statement)
    damages = {
        f"content of entry {entries[1]} is gone": f"DELETE FROM content WHERE entry = '{entries[1]}'",
        "does not have the entries": f"DELETE FROM member WHERE entry = '{entries[1]}'",
        "ends at entry 4, but 5 were written": "UPDATE chain SET seq = 5",
    }
    for message, statement in damages.items():
        # Seen from within the transaction, which the error undoes.
        with pytest.raises(CorruptData, match=message):
            damaged_and_verified(world, statement)
    world.store.log.verify(head)


def test_snapshot_of_the_same_log_is_the_same(world: World):
    project = world.project(overlap=2)
    world.add(project, ranking_task("one"), ranking_task("two", round=1), ranking_task("three", why="audit"))
    heldout = world.person("held", cohort="heldout")
    for handle in ("anna", "held"):
        for _ in range(3):
            world.judge(handle, project)
    first = world.store.snapshots.make(Filter(project.id))
    assert (first.entries, first.head) == (3, world.store.log.head().id)
    assert world.store.snapshots.make(Filter(project.id)) == first
    world.clock.seconds += 60
    world.add(project, ranking_task("four"))
    world.judge("anna", project)
    assert world.store.snapshots.make(Filter(project.id, until=first.filter.until)) == first
    assert world.store.snapshots.make(Filter(project.id)).entries == 4
    assert world.store.snapshots.make(Filter(project.id, cohorts=("heldout",))).entries == 3
    assert world.store.snapshots.make(Filter(project.id, rounds=(1,))).entries == 1
    assert world.store.snapshots.make(Filter(project.id, whys=("audit",))).entries == 1
    with pytest.raises(InvalidInput, match="one that a judgment matches"):
        world.store.snapshots.make(Filter(project.id, without=(world.person("anna"),), whys=("fresh",)))
    with pytest.raises(InvalidInput, match="end of the log"):
        world.store.snapshots.make(Filter(project.id, until=99))
    with pytest.raises(InvalidInput, match="judged already"):
        world.store.people.change(heldout, {"cohort": "train"})
    judged = world.store.snapshots.read(first.digest)
    everybody = Filter(project.id, cohorts=("train", "heldout"))
    assert [one.entry.id for one in judged] == world.store.snapshots.entries(first.digest)
    assert {one.pseudonym for one in judged} == {world.people["anna"].pseudonym}
    assert set(judged[0].answers) == set((judged[0].entry.body or {})["ranks"])
    judgment = judged[0].judgment
    assert [len(judgment.best), set(judgment.shown)] == [1, set(judged[0].answers)]
    assert agreement([one.judgment for one in world.store.snapshots.judged(everybody)], seed=0).rate == 1.0


def test_artifacts_know_what_they_were_made_from(world: World):
    project = world.project()
    world.add(project, ranking_task())
    world.judge("anna", project)
    snapshot = world.store.snapshots.make(Filter(project.id)).digest
    artifacts = world.store.artifacts
    reward = artifacts.add("reward_model", "rm-1", [snapshot], place="runs/a/reward")
    policy = artifacts.add("policy", "policy-1", ["rm-1"])
    assert artifacts.add("policy", "policy-1", ["rm-1"]) == policy
    assert artifacts.made_of(snapshot) == [reward, policy] or artifacts.made_of(snapshot) == [policy, reward]
    assert {one.id for one in artifacts.sources("policy-1")} == {"rm-1", snapshot}
    with pytest.raises(Conflict, match="made from something else"):
        artifacts.add("policy", "policy-1", [snapshot])
    with pytest.raises(NotFound, match="no artifact and no prompt"):
        artifacts.add("policy", "policy-2", ["unknown"])


def test_accesses_and_hours_are_listed(world: World):
    project = world.project()
    world.add(project, ranking_task("one"), ranking_task("two"))
    world.store.accesses.add("admin", "export", "abc")
    world.store.accesses.add("admin", "read")
    listed = world.store.accesses.page()
    assert [(one.what, one.object) for one in listed] == [("export", "abc"), ("read", "")]
    assert world.store.accesses.page(after=listed[0].seq) == listed[1:]
    world.judge("anna", project)
    world.clock.seconds += 3_600
    world.judge("anna", project)
    assert world.store.figures.hours(project.id, since=0.0) == {0: 1, 1: 1}


def test_a_store_is_opened_again_and_a_newer_one_refused(
    world: World, place: tuple[str, Path], reopened: Callable[[], World]
):
    project = world.project()
    world.add(project, ranking_task())
    world.judge("anna", project)
    again = reopened()
    assert again.store.log.head() == world.store.log.head()
    assert again.store.subject("x") == world.store.subject("x")
    with world.store._database.writing() as connection:
        connection.run("INSERT INTO schema_version (version, applied) VALUES (999, 'later')")
    with pytest.raises(SchemaTooNew, match="schema version 999, this program reads up to 3"):
        open_store(place[0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=40), min_size=4, max_size=4, unique=True))
def test_any_text_comes_back_as_it_was(world: World, texts: list[str]):
    name = "texts"
    known = [one for one in world.store.projects.all() if one.settings.name == name]
    project = known[0] if known else world.project(name)
    question, *answers, note = texts
    task = ranking_task(
        prompt=prompt(question), answers=tuple(NewAnswer(text) for text in answers), priority=1
    )
    if not world.store.tasks.add(project.id, [task])[0].new:
        return
    offer = world.take("anna", project)
    assert (offer.turns[0].content, {text for _, text in offer.answers}) == (question, set(answers))
    world.store.leases.save_draft(offer.assignment.id, world.person("anna"), {note: note})
    assert world.store.leases.get(offer.assignment.id, world.person("anna")).draft == {note: note}
    said = ranked(offer, note=note)
    entry = world.store.judgments.hand_in(offer.assignment.id, world.person("anna"), said).entry
    assert (world.store.log.get(entry).body or {})["note"] == note


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


def test_lost_connections_are_replaced(postgres: tuple[str, Path], tmp_path: Path):
    import psycopg

    world = open_world(schema_of(postgres[0], "lost"), tmp_path)
    project = world.project()
    with psycopg.connect(postgres[0], autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
        )
    assert world.store.projects.get("help") == project
    world.store.close()
    with pytest.raises(Unavailable, match="the feedback store postgresql:///postgres"):
        open_store(f"postgresql://nobody@/postgres?host={tmp_path}")


def test_wrong_files_are_refused(tmp_path: Path):
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database, but long enough to be looked at by SQLite" * 20)
    with pytest.raises(CorruptData, match="not a database"):
        open_store(str(other))
    with pytest.raises(ConfigError, match=r"feedback\.store"):
        open_store(str(tmp_path / "other.db" / "feedback.db"))
    with open_store(str(tmp_path / "new" / "feedback.db")) as store:
        store.projects.create(ProjectSettings("help"))
        assert (tmp_path / "new" / "feedback.db").stat().st_mode & 0o777 == 0o600
        with sqlite3.connect(tmp_path / "new" / "feedback.db") as raw:
            assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        raw.close()


def test_a_share_of_what_a_judge_labels_goes_to_two_people_too(world: World):
    project = world.project(audit_share=0.5)
    tasks = world.add(project, *(ranking_task(f"question {number}", overlap=1) for number in range(40)))
    world.person("judge", kind="judge")
    for _ in tasks:
        world.judge("judge", project)
    drawn = [task for task in tasks if world.store.tasks.get(task).state == "open"]
    assert 6 <= len(drawn) <= 34
    assert all(world.store.tasks.get(task).overlap == 3 for task in drawn)
    world.person("second", kind="judge")
    world.judge("second", project)
    for handle in ("anna", "ben"):
        for _ in drawn:
            world.judge(handle, project)
    assert world.store.figures.progress(project.id).tasks == {"closed": 40}
    with pytest.raises(InvalidInput, match="only people are held out"):
        world.store.people.change(world.person("judge"), {"cohort": "heldout"})
    with pytest.raises(InvalidInput, match="audit_share"):
        world.project("less", audit_share=0.01)
