"""Projects and tasks of the store: what is added, and which tasks are shared, gold or for people too."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from fairlead.errors import (
    InvalidInput,
    NotFound,
)
from fairlead.types import Message
from services.feedback.store.judged import Filter
from services.feedback.store.records import NewAnswer, NewTask
from tests.feedback_world import World, prompt, ranked, ranking_task


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
    (ranking_task(k=1), r"tasks\[0\].answers: got '1 answers'"),
    (
        ranking_task(k=10, prompt=replace(prompt("x"), turns=(Message("text", "x"),))),
        r"allowed: 2 to 9 for rank",
    ),
    (ranking_task(k=3, kind="pair"), r"answers: got '3 answers'"),
    (ranking_task(k=3, kind="write"), r"answers: got '3 answers'"),
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
