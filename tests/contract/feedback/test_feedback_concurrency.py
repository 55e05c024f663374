"""Several processes on one store: every task gets exactly what it wants; kills lose and double nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from fairlead.errors import Conflict, InvalidInput, NotFound
from services.feedback.store.judged import Filter
from services.feedback.store.records import Project
from tests.feedback_labeler import receipts
from tests.feedback_world import World, ranked, ranking_task

SECONDS = 100.0


def start(world: World, project: Project, journal: Path, *people: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.feedback_labeler", world.address, project.id, str(journal)]
    return subprocess.Popen([*command, *people], cwd=Path(__file__).parents[3])


def check(world: World, project: Project, journals: list[Path], overlap: int) -> None:
    """Every task has exactly what it wants, nothing acknowledged is lost, nothing is doubled."""
    tasks = world.store.tasks.page(project.id)
    assert {task.state for task in tasks} == {"closed"}
    judged = world.store.snapshots.judged(Filter(project.id))
    assert Counter(one.task.id for one in judged) == {task.id: overlap for task in tasks}
    pairs = Counter((one.task.id, one.entry.person) for one in judged)
    assert set(pairs.values()) == {1}
    entries = [one.entry.id for one in judged]
    acknowledged = [entry for journal in journals for entry in receipts(journal)[0].values()]
    assert sorted(acknowledged) == sorted(entries)
    progress = world.store.figures.progress(project.id)
    assert (progress.done, progress.late, progress.leases, progress.wanted) == (len(entries), 0, 0, 0)
    assert world.store.log.verify().head.seq == len(entries)


def work_in_processes(world: World, folder: Path, shape: tuple[int, int, int], overlap: int = 3) -> None:
    """Let processes, of some people each, label all tasks."""
    processes, people, tasks = shape
    project = world.project(overlap=overlap)
    for begin in range(0, tasks, 500):
        names = range(begin, min(tasks, begin + 500))
        world.add(project, *(ranking_task(f"task {number}", k=2) for number in names))
    ids = [[world.person(f"p{process}-{one}") for one in range(people)] for process in range(processes)]
    running = [start(world, project, folder / "journal", *group) for group in ids]
    try:
        for process in running:
            assert process.wait(timeout=600) == 0
    finally:
        for process in running:
            process.kill()
            process.wait()
    check(world, project, [folder / f"journal-{person}" for group in ids for person in group], overlap)


def test_two_processes_give_each_task_exactly_what_it_wants(world: World, tmp_path: Path):
    work_in_processes(world, tmp_path, (2, 3, 12))


@pytest.mark.slow
def test_twenty_connections_give_each_task_exactly_what_it_wants(world: World, tmp_path: Path):
    work_in_processes(world, tmp_path, (4, 5, 667))


def killed(world: World, folder: Path, *, kills: int, tasks: int) -> None:
    """Kill a process that labels, again and again at any moment, and let it end."""
    draw = random.Random(kills)
    project = world.project(lease_seconds=1e6)
    world.add(project, *(ranking_task(f"task {number}", k=2) for number in range(tasks)))
    person = world.person("anna")
    journal = folder / f"journal-{person}"
    for left in range(kills, 0, -1):
        process = start(world, project, folder / "journal", person)
        try:
            done = len(receipts(journal)[0])
            # Half of an even share: the process continues while its journal is read.
            wanted = done + draw.randrange(1, max(2, (tasks - done) // (2 * left)))
            deadline = time.monotonic() + SECONDS
            while len(receipts(journal)[0]) < wanted:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.001)
            threading.Event().wait(draw.random() * 0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        world.store.log.verify()
        known = {entry.id for entry in world.store.log.entries(limit=1_000)}
        assert set(receipts(journal)[0].values()) <= known
    process = start(world, project, folder / "journal", person)
    assert process.wait(timeout=SECONDS) == 0
    check(world, project, [journal], 1)


def test_kill_loses_and_doubles_nothing(world: World, tmp_path: Path):
    if not world.is_sqlite:
        pytest.skip("in the slow test below")
    killed(world, tmp_path, kills=3, tasks=120)


@pytest.mark.slow
def test_many_kills_lose_and_double_nothing(world: World, tmp_path: Path):
    killed(world, tmp_path, kills=25, tasks=600)


def label(world: World, project: Project, person: str) -> None:
    """Take, save, hand in and revise until nothing is left; what is erased meanwhile is refused."""
    with suppress(NotFound):
        while (offer := world.store.leases.take(person, project.id)) is not None:
            with suppress(Conflict, NotFound):
                world.store.leases.save_draft(offer.assignment.id, person, {"note": "draft"})
                receipt = world.store.judgments.hand_in(offer.assignment.id, person, ranked(offer))
                world.store.judgments.revise(receipt.entry, person, ranked(offer, note="again"))


def forget(world: World, prompts: list[str], person: str) -> None:
    for prompt in prompts:
        world.store.erasures.forget("prompt", prompt, actor="admin")
    world.store.erasures.forget("person", person, actor="admin")


def make_snapshots(world: World, project: Project) -> None:
    for _ in range(8):
        with suppress(InvalidInput):
            world.store.snapshots.make(Filter(project.id))


def test_forgetting_while_people_work_leaves_no_content(world: World):
    """No transaction waits for one that waits for it, and nothing is written after its erasure."""
    project = world.project(overlap=2)
    world.add(project, *(ranking_task(f"task {number}", k=2) for number in range(24)))
    people = [world.person(f"p{number}") for number in range(4)]
    prompts = [one.id for one in world.store.prompts.page()][::2]
    with ThreadPoolExecutor(6) as pool:
        works = [pool.submit(label, world, project, person) for person in people]
        works.append(pool.submit(forget, world, prompts, people[-1]))
        works.append(pool.submit(make_snapshots, world, project))
        for work in works:
            work.result(SECONDS)
    world.store.log.verify()
    gone = {task.id for task in world.store.tasks.page(project.id) if task.prompt is None}
    assert len(gone) == 12
    for entry in world.store.log.entries(limit=1_000):
        erased = entry.task in gone or entry.person == people[-1]
        assert (entry.body is None) == erased
    for made in world.store.snapshots.all():
        bodies = [world.store.log.get(entry).body for entry in world.store.snapshots.entries(made.digest)]
        assert (None in bodies) == (made.tainted is not None)
