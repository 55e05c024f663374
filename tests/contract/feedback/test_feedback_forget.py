"""Forgetting: deleted texts are in no file, the chain holds, and exactly what was reached is tainted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fairlead.errors import Conflict, NotFound
from services.feedback.store.judged import Entry, Filter, Writing
from services.feedback.store.records import NewAnswer, NewPerson
from tests.feedback_world import World, open_world, prompt, ranked, ranking_task


def files_with(world: World, text: str) -> list[str]:
    """Return the files that hold a text: of a SQLite store all, of PostgreSQL those of the tables."""
    folder = world.folder if world.is_sqlite else world.folder / "data" / "base"
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def flushed(world: World) -> None:
    """Let PostgreSQL write its pages, so that a search of the files would find what is there."""
    if not world.is_sqlite:
        import psycopg

        with psycopg.connect(world.address, autocommit=True) as raw:
            raw.execute("CHECKPOINT")


def test_forgotten_person_is_in_no_file(world: World):
    project = world.project(overlap=2)
    texts = [f"anna-{what}-canary" for what in ("note", "answer", "prompt", "writing", "draft")]
    anna = world.person("anna-handle-canary", subject="anna-subject-canary")
    ids = world.add(
        project,
        *(ranking_task(f"task {n}") for n in range(3)),
        ranking_task("write", kind="write", answers=()),
        ranking_task("hers", answers=(NewAnswer(texts[1], author=anna), NewAnswer("other"))),
        ranking_task(prompt=prompt(texts[2], author=anna)),
    )
    for _ in range(3):
        world.judge("anna-handle-canary", project, note=texts[0])
        world.judge("ben", project, note="ben-note-canary")
    write = world.take("anna-handle-canary", project)
    world.store.judgments.hand_in(write.assignment.id, anna, Writing(texts[3]))
    written = world.take("ben", project)
    world.store.judgments.hand_in(written.assignment.id, world.person("ben"), Writing("ben-writing-canary"))
    world.judge("ben", project, note="ben-quotes-canary")
    own = world.take("anna-handle-canary", project)
    world.store.leases.save_draft(own.assignment.id, anna, {"note": texts[4]})
    world.store.people.start_session(anna)
    snapshot = world.store.snapshots.make(Filter(project.id, kinds=("rank", "write")))
    flushed(world)
    for text in (*texts, "anna-handle-canary", "anna-subject-canary"):
        assert files_with(world, text), f"{text} was never there, so its absence says nothing"
    assert [task.state for task in world.store.tasks.page(project.id)][:3] == ["closed"] * 3

    reach = world.store.artifacts.reach("person", anna)
    erasure = world.store.erasures.forget("person", anna, actor="admin")

    flushed(world)
    for text in (*texts, "anna-handle-canary", "anna-subject-canary", "ben-quotes-canary"):
        assert files_with(world, text) == []
    assert files_with(world, "ben-note-canary")
    assert erasure.scrubbed is not None
    assert (erasure.entries, erasure.artifacts) == (len(reach.entries), (snapshot.digest,))
    assert world.store.erasures.all() == [erasure]
    assert world.store.log.verify().erased == len(reach.entries) == 5
    # Tasks that showed her texts are withdrawn, the others want one more judgment.
    states = {task.id: task.state for task in world.store.tasks.page(project.id)}
    assert [states[task] for task in ids] == ["open"] * 4 + ["withdrawn"] * 2
    assert world.store.people.get(anna).state == "forgotten"
    assert world.store.people.get(anna).handle is None
    with pytest.raises(Conflict, match="were erased; make a new snapshot"):
        world.store.snapshots.read(snapshot.digest)
    assert world.store.snapshots.make(Filter(project.id, kinds=("rank", "write"))).tainted is None
    with pytest.raises(NotFound):
        world.store.erasures.forget("person", anna, actor="admin")
    with pytest.raises(NotFound):
        world.store.leases.take(anna, project.id)
    assert world.store.people.add(NewPerson("labeler", "anna-handle-canary")).id != anna


def test_forgotten_end_user_and_prompt_are_in_no_file(world: World):
    project = world.project()
    subject = world.store.subject("user 17")
    world.add(
        project,
        ranking_task(prompt=prompt("user-prompt-canary", subject=subject)),
        ranking_task("kept-prompt-canary"),
        ranking_task("single-prompt-canary"),
    )
    for _ in range(3):
        world.judge("anna", project, note="note")
    ids = {one.turns[0].content: one.id for one in world.store.prompts.page()}
    world.store.artifacts.add("policy", "policy-1", [ids["user-prompt-canary"]])
    world.store.accesses.add("admin", "read", ids["user-prompt-canary"])
    waiting = world.store.erasures.forget("subject", subject, actor="admin", scrub=False)
    assert waiting.scrubbed is None
    world.store.erasures.forget("prompt", ids["single-prompt-canary"], actor="admin")
    assert [one.scrubbed for one in world.store.erasures.all()] == [world.clock.seconds] * 2
    flushed(world)
    # Not the id of a prompt either: it is a digest, and would confirm a guess.
    for text in ("user-prompt-canary", "single-prompt-canary", ids["user-prompt-canary"], subject):
        assert files_with(world, text) == []
    assert files_with(world, "kept-prompt-canary")
    assert world.store.artifacts.get("policy-1").tainted is not None
    assert world.store.artifacts.add("policy", "policy-2", ["policy-1"]).tainted is not None
    assert len(world.store.snapshots.judged(Filter(project.id))) == 1
    world.store.log.verify()
    for kind, name in (("subject", subject), ("prompt", ids["single-prompt-canary"]), ("prompt", "unknown")):
        with pytest.raises(NotFound):
            world.store.erasures.forget(kind, name, actor="admin")
    # The same text may come again, with a new consent.
    assert world.store.tasks.add(project.id, [ranking_task("single-prompt-canary")])[0].new


def test_scrub_waits_for_readers_and_is_finished_later(tmp_path: Path):
    world = open_world(str(tmp_path / "feedback.db"), tmp_path)
    project = world.project()
    world.add(project, ranking_task("prompt-canary"))
    world.judge("anna", project)
    database = world.store._database
    database.checkpoint_milliseconds = 50  # type: ignore[attr-defined]
    with database.reading() as connection:
        connection.run("SELECT * FROM prompt")
        erasure = world.store.erasures.forget("prompt", world.store.prompts.page()[0].id, actor="admin")
        assert erasure.scrubbed is None
        assert files_with(world, "prompt-canary")
    assert world.store.erasures.scrub()
    assert world.store.erasures.get(erasure.id).scrubbed is not None
    assert files_with(world, "prompt-canary") == []
    world.store.close()


def check_lineage(world: World, made: dict[str, set[str]], judgments: list[Entry]) -> None:
    """Compare lineage with walks over what each artifact was made from, in both directions."""
    lineage = world.store.lineage
    for entry in judgments:
        reached: set[str] = set()
        while grown := {one for one, sources in made.items() if sources & ({entry.id} | reached)} - reached:
            reached |= grown
        found, nodes = lineage.forward("judgment", entry.id)
        assert found.entries == (entry.id,)
        assert {node.artifact.id for node in nodes} == reached
        for place, node in enumerate(nodes):
            before = {one.artifact.id for one in nodes[:place]}
            assert set(node.made_from) & reached <= before
            snapshot = entry.id in made[node.artifact.id]
            assert node.reached == snapshot
            if snapshot:
                assert node.judgments == len(made[node.artifact.id])
    for artifact in list(made)[::5]:
        sources = {artifact}
        while grown := {one for source in sources for one in made.get(source, ())} - sources:
            sources |= grown
        nodes, people = lineage.backward(artifact)
        assert {node.artifact.id for node in nodes} == sources & made.keys()
        said = sources - made.keys()
        assert set(lineage.judgments(artifact)) == said
        assert sum(one.judgments for one in people) == len(said)
        assert {one.handle for one in people} == {
            world.store.people.get(world.store.log.get(one).person or "").handle for one in said
        }
    with pytest.raises(NotFound, match="no judgment"):
        lineage.forward("judgment", "unknown")


def test_reach_equals_an_oracle_on_a_random_graph(world: World):  # noqa: C901 - the oracle is in line
    draw = random.Random(7)
    project = world.project(overlap=3)
    people = [f"p{number}" for number in range(6)]
    subjects = [world.store.subject(f"user {number}") for number in range(3)]
    world.add(
        project,
        *(
            ranking_task(
                prompt=prompt(f"task {n}", subject=draw.choice([None, *subjects])),
                answers=(NewAnswer("a", author=draw.choice([None, world.person("p0")])), NewAnswer("b")),
            )
            for n in range(8)
        ),
    )
    for handle in people:
        for _ in range(draw.randrange(1, 4)):
            offer = world.store.leases.take(world.person(handle), project.id)
            if offer is not None:
                world.store.judgments.hand_in(offer.assignment.id, world.person(handle), ranked(offer))
    made: dict[str, set[str]] = {}
    """What each artifact was made from."""
    for _ in range(6):
        without = tuple(world.person(handle) for handle in draw.sample(people, 3))
        until = draw.randrange(world.store.log.head().seq - 3, world.store.log.head().seq)
        snapshot = world.store.snapshots.make(Filter(project.id, without=without, until=until))
        made[snapshot.digest] = set(world.store.snapshots.entries(snapshot.digest))
    for number in range(50 - len(made)):
        sources = set(draw.sample(sorted(made), min(len(made), draw.randrange(1, 3))))
        world.store.artifacts.add(draw.choice(["reward_model", "policy"]), f"model-{number}", sorted(sources))
        made[f"model-{number}"] = sources
    assert len(made) == 50
    tasks = world.store.tasks.page(project.id)
    prompts = {one.id: one for one in world.store.prompts.page()}
    entries = world.store.log.entries()
    targets = [("person", world.person(handle)) for handle in people]
    targets += [("subject", subject) for subject in subjects] + [("prompt", next(iter(prompts)))]
    sizes = set()
    for kind, name in targets:
        gone = {one.id for one in prompts.values() if name in (one.id, one.subject)}
        touched = {task.id for task in tasks if task.prompt in gone}
        for task in tasks:
            if any(answer.author == name for answer in world.store.tasks.answers(task.id)):
                touched.add(task.id)
        said = {entry.id for entry in entries if entry.person == name or entry.task in touched}
        reached: set[str] = set()
        while grown := {one for one, sources in made.items() if sources & (said | reached)} - reached:
            reached |= grown
        found = world.store.artifacts.reach(kind, name)
        assert set(found.prompts) == gone
        assert set(found.tasks) == touched
        assert set(found.entries) == said
        assert set(found.artifacts) == reached
        sizes.add(len(reached))
    assert len(sizes) > 2
    check_lineage(world, made, [entry for entry in entries if entry.kind == "judgment"][::7])
    expected = set(world.store.artifacts.reach("person", world.person("p3")).artifacts)
    world.store.erasures.forget("person", world.person("p3"), actor="admin")
    assert {one.id for one in world.store.artifacts.all(tainted=True)} == expected
    gone = {one.id for one in entries if one.person == world.person("p3")}
    for artifact in expected:
        contributions = world.store.lineage.backward(artifact)[1]
        assert sum(one.erased for one in contributions) == len(
            gone & set(world.store.lineage.judgments(artifact))
        )
