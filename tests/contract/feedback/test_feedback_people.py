"""People of the store: invitations, sessions, and what they have seen and when."""

from __future__ import annotations

import pytest

from fairlead.errors import (
    InvalidInput,
    PermissionDenied,
    Unauthenticated,
)
from services.feedback.store.records import NewPerson
from tests.feedback_world import World, ranking_task


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
