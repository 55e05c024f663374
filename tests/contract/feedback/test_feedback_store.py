"""The store as a whole: its chain, snapshots and artifacts, any text, and databases that are lost or wrong.

The suite of this folder runs against SQLite and against a real PostgreSQL: both keep the same rules.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
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
    SchemaTooNew,
    Unavailable,
)
from fairlead.judgments import agreement
from services.feedback.store import open_store
from services.feedback.store.judged import Filter
from services.feedback.store.log import Head
from services.feedback.store.records import NewAnswer, ProjectSettings
from tests.feedback_world import World, open_world, prompt, ranked, ranking_task, schema_of


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
    with pytest.raises(SchemaTooNew, match=r"schema version 999, this program reads up to \d+"):
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
