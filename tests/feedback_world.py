"""Stores of feedback for tests: one address for each database, a clock, and small tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from fairlead.types import Message
from services.feedback.store import Store, open_store
from services.feedback.store.judged import Ranking
from services.feedback.store.records import (
    NewAnswer,
    NewPerson,
    NewPrompt,
    NewTask,
    Offer,
    Person,
    Project,
    ProjectSettings,
)


@dataclass
class Clock:
    """A clock that tests set."""

    seconds: float = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class World:
    """A store with a project and people."""

    store: Store
    address: str
    folder: Path
    """All files of a SQLite store; those of the server otherwise."""
    clock: Clock
    people: dict[str, Person] = field(default_factory=dict)

    @property
    def is_sqlite(self) -> bool:
        return "://" not in self.address

    def project(self, name: str = "help", **settings: object) -> Project:
        values: dict[str, object] = {"kinds": ("rank", "pair", "write", "edit", "prompt")} | settings
        return self.store.projects.create(ProjectSettings(name=name, **values))  # type: ignore[arg-type]

    def person(self, handle: str, **fields: object) -> str:
        """Return the id of an active person, added when first named."""
        if handle not in self.people:
            values: dict[str, object] = {"kind": "labeler", "active": True} | fields
            self.people[handle] = self.store.people.add(NewPerson(handle=handle, **values))  # type: ignore[arg-type]
        return self.people[handle].id

    def add(self, project: Project, *tasks: NewTask) -> list[str]:
        return [added.id for added in self.store.tasks.add(project.id, tasks)]

    def take(self, handle: str, project: Project) -> Offer:
        offer = self.store.leases.take(self.person(handle), project.id)
        assert offer is not None
        return offer

    def judge(self, handle: str, project: Project, *, request: str | None = None, note: str = "") -> str:
        """Let a person take a task and hand in a ranking; return the id of the entry."""
        offer = self.take(handle, project)
        ranking = ranked(offer, note=note)
        return self.store.judgments.hand_in(
            offer.assignment.id, self.person(handle), ranking, request=request
        ).entry


def prompt(text: str, **fields: object) -> NewPrompt:
    return NewPrompt(turns=(Message("user", text),), **fields)  # type: ignore[arg-type]


def ranking_task(text: str = "my lamp is late .", *, k: int = 3, **fields: object) -> NewTask:
    answers = tuple(NewAnswer(f"answer {number} to {text}", run="secret-run") for number in range(k))
    values: dict[str, object] = {"kind": "rank", "prompt": prompt(text), "answers": answers} | fields
    return NewTask(**values)  # type: ignore[arg-type]


def ranked(offer: Offer, *, note: str = "") -> Ranking:
    """Return a ranking by text, with the last two tied."""
    order = sorted(offer.answers, key=lambda answer: answer[1])
    ranks = {answer: min(place, max(1, len(order) - 1)) for place, (answer, _) in enumerate(order, start=1)}
    return Ranking(ranks=ranks, note=note, seconds=12.5)


def open_world(address: str, folder: Path) -> World:
    clock = Clock()
    return World(open_store(address, clock=clock), address, folder, clock)


def schema_of(server: str, name: str) -> str:
    """Return the address of a schema of a server, which is made."""
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"')  # type: ignore[arg-type]
    return f"{server}&options={quote(f'-csearch_path={name}')}"
