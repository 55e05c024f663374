"""Bring judgments of another tool into a store: tasks, their authors, and what each of them said.

Everything may be brought in again: the same content has the same task, and a person judges a task once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fairlead.errors import Conflict, InvalidInput, NotFound
from services.feedback.store import Store
from services.feedback.store.judged import Ranking
from services.feedback.store.records import NewPerson, NewTask

_HANDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.@+-]{0,63}")


@dataclass(frozen=True, slots=True)
class ForeignRanking:
    """What somebody said in another tool."""

    author: str
    """How that tool calls them."""
    ranks: tuple[int, ...]
    """Rank of each answer, in the order of the task's answers."""
    note: str = ""
    """What they added."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A task of another tool with its judgments."""

    task: NewTask
    """Prompt and answers."""
    rankings: tuple[ForeignRanking, ...]
    """One for each author at most."""


@dataclass(frozen=True, slots=True)
class BroughtIn:
    """What was brought in."""

    tasks: int
    """Tasks that were not there before."""
    judgments: int
    """Judgments that were not there before."""
    repeated: int
    """Judgments that were there before."""


def bring_in(store: Store, project: str, tool: str, items: Iterable[Incoming]) -> BroughtIn:
    """Add tasks and judgments of another tool to a project.

    Args:
        store: where to.
        project: id of the project.
        tool: name of the tool, which is part of its authors' handles.
        items: the tasks.

    Raises:
        InvalidInput: a task or a ranking is invalid; those before it are in the store.
        NotFound: there is no such project.
    """
    tasks = judgments = repeated = 0
    people: dict[str, str] = {}
    for index, item in enumerate(items):
        if len({ranking.author for ranking in item.rankings}) < len(item.rankings):
            raise InvalidInput("rankings", index=index, got="two of one author", allowed="one of each author")
        (added,) = store.tasks.add(project, [item.task])
        tasks += added.new
        texts = [answer.text for answer in item.task.answers]
        ids = {answer.text: answer.id for answer in store.tasks.answers(added.id)}
        for ranking in item.rankings:
            if ranking.author not in people:
                people[ranking.author] = _person(store, tool, ranking.author)
            ranks = {ids[text]: rank for text, rank in zip(texts, ranking.ranks, strict=True)}
            done = _hand_in(store, people[ranking.author], added.id, Ranking(ranks))
            judgments += not done
            repeated += done
    return BroughtIn(tasks, judgments, repeated)


def _hand_in(store: Store, person: str, task: str, said: Ranking) -> bool:
    """Hand in a ranking and return whether it was there before. A task that is full wants one more."""
    try:
        offer = store.leases.assign(person, task)
    except Conflict:
        store.tasks.change(task, {"overlap": store.tasks.get(task).overlap + 1})
        offer = store.leases.assign(person, task)
    return store.judgments.hand_in(offer.assignment.id, person, said).repeated


def _person(store: Store, tool: str, author: str) -> str:
    handle = f"{tool}-{author}"
    if not _HANDLE.fullmatch(handle):
        handle = f"{tool}-{hashlib.sha256(author.encode('utf-8', 'replace')).hexdigest()[:16]}"
    try:
        return store.people.by_handle(handle).id
    except NotFound:
        return store.people.add(NewPerson(kind="import", handle=handle)).id
