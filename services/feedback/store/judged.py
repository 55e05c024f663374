"""What people say about a task, entries of the log, and what snapshots hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fairlead.errors import InvalidInput
from fairlead.types import Message
from services.feedback.store.limits import (
    Limits,
    check_number,
    check_object,
    check_text,
    check_whole,
    check_word,
)
from services.feedback.store.records import BESIDES_JUDGES, Answer, Task

if TYPE_CHECKING:
    from fairlead.judgments import Judgment

HANDED_IN = ("judgment", "writing")
"""Kinds of the entry that a person hands in for a task: a ranking or a text."""
COUNTING = (*HANDED_IN, "revision")
"""Kinds of entries that count while nothing replaces them."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A judgment of a task of kind `rank` or `pair`."""

    ranks: Mapping[str, int]
    """Rank of every answer by its id; 1 is the best, equal ranks are ties. Gaps are closed when it is stored.
    """
    ratings: Mapping[str, int] = field(default_factory=dict)
    """Quality from 1 to 7 by id of the answer, for some or all."""
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Flags by id of the answer, such as `hallucination`."""
    strength: int | None = None
    """By how much the best is better, from 1 to 4."""
    note: str = ""
    """What the person adds."""
    seconds: float = 0.0
    """How long the person worked on it."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """More that a program records, such as a judge's rubric, model and raw outputs."""

    def checked(self, task: Task, limits: Limits) -> dict[str, Any]:
        """Return the body of an entry.

        Raises:
            InvalidInput: if a rank is missing or invalid, another answer is named, or something is too long.
        """
        if task.kind not in ("rank", "pair"):
            raise InvalidInput("ranks", got="a ranking", allowed=f"a text, for a task of kind {task.kind}")
        if set(self.ranks) != set(task.answers):
            odd = sorted(set(self.ranks) ^ set(task.answers))
            raise InvalidInput(
                "ranks",
                got=f"{len(self.ranks)} ranks, and a difference at {odd[0]}",
                allowed=f"a rank for each of the {len(task.answers)} answers of the task",
            )
        given = {
            answer: check_whole(f"ranks.{answer}", rank, 1, len(task.answers))
            for answer, rank in self.ranks.items()
        }
        dense = {rank: place for place, rank in enumerate(sorted(set(given.values())), start=1)}
        for name, found in (("ratings", self.ratings), ("flags", self.flags)):
            if unknown := set(found) - set(task.answers):
                raise InvalidInput(name, got=min(unknown), allowed="ids of the answers of the task")
        for answer, flags in self.flags.items():
            if len(flags) > limits.flags:
                raise InvalidInput(f"flags.{answer}", got=len(flags), allowed=f"at most {limits.flags} flags")
        return {
            "ranks": {answer: dense[rank] for answer, rank in given.items()},
            "ratings": {
                answer: check_whole(f"ratings.{answer}", value, 1, 7)
                for answer, value in self.ratings.items()
            },
            "flags": {
                answer: sorted({check_word(f"flags.{answer}", flag) for flag in flags})
                for answer, flags in self.flags.items()
            },
            "strength": None if self.strength is None else check_whole("strength", self.strength, 1, 4),
            **_common(self.note, self.seconds, self.details, limits),
        }


@dataclass(frozen=True, slots=True)
class Writing:
    """What a person writes for a task of kind `write`, `edit` or `prompt`."""

    text: str
    """The answer, or the prompt."""
    base: str | None = None
    """Id of the answer that was edited; for `edit`."""
    note: str = ""
    """What the person adds."""
    seconds: float = 0.0
    """How long the person worked on it."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """More that a program records."""

    def checked(self, task: Task, limits: Limits) -> dict[str, Any]:
        """Return the body of an entry.

        Raises:
            InvalidInput: if the text is blank or too long, or an edit names no answer of the task.
        """
        if task.kind not in ("write", "edit", "prompt"):
            raise InvalidInput("text", got="a text", allowed=f"ranks, for a task of kind {task.kind}")
        if (task.kind == "edit") != (self.base is not None) or (self.base and self.base not in task.answers):
            wanted = "an answer of the task" if task.kind == "edit" else "nothing: only edits have one"
            raise InvalidInput("base", got=self.base, allowed=wanted)
        return {
            "text": check_text("text", self.text, limits.text_characters),
            "base": self.base,
            **_common(self.note, self.seconds, self.details, limits),
        }


Said = Ranking | Writing
"""What a person says about a task."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log."""

    seq: int
    """From 1, without gaps, in the order of the commits."""
    id: str
    """Digest of the other fields, which names the whole log up to here."""
    kind: str
    """`judgment`, `writing`, `revision`, `withdrawal`, `skip`, `adjudication` or `erasure`."""
    task: str | None
    """Id of the task."""
    person: str | None
    """Id of the person."""
    at: float
    """When it was written."""
    late: bool
    """Whether the place had been given to somebody else when it was handed in."""
    replaces: str | None
    """Id of the entry that it replaces."""
    body: Mapping[str, Any] | None
    """Its content; None once erased. Rankings have `ranks`, `shown` and `guideline`, texts have `text`."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a person has handed in."""

    entry: str
    """Id of the entry."""
    seq: int
    """Its place in the log."""
    late: bool
    """Whether its place had been given to somebody else."""
    repeated: bool
    """Whether it had been handed in before; nothing was written then."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries a snapshot or a figure is about."""

    project: str
    """Id of the project."""
    kinds: tuple[str, ...] = ("rank", "pair")
    """Kinds of tasks."""
    cohorts: tuple[str, ...] = ("train",)
    """Cohorts of people."""
    people: tuple[str, ...] = BESIDES_JUDGES
    """Kinds of people. A snapshot has only judges or none."""
    whys: tuple[str, ...] = ("random", "uncertain", "fresh", "audit")
    """Why the task was chosen."""
    rounds: tuple[int, ...] = ()
    """Rounds; empty for all."""
    without: tuple[str, ...] = ()
    """Ids of people who are left out."""
    late: bool = True
    """Whether judgments that came late are in it."""
    after: int = 0
    """Entries up to this number of the log are left out."""
    until: int | None = None
    """Last entry of the log that is read; by default the newest."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A judgment with all that an export writes about it."""

    entry: Entry
    """The judgment; its body is there."""
    task: Task
    """What was judged."""
    turns: tuple[Message, ...]
    """The prompt."""
    split_group: str | None
    """What decides the side of a split."""
    answers: Mapping[str, Answer]
    """The answers by id."""
    pseudonym: str
    """Name of the labeler in exports."""
    person_kind: str
    """Kind of the labeler."""
    cohort: str
    """Cohort of the labeler."""

    @property
    def judgment(self) -> Judgment:
        """The ranking as figures of agreement and bias read it; the labeler is the person's id.

        Raises:
            InvalidInput: it is a text.
        """
        # numpy, which the store itself does not need.
        from fairlead.judgments import Judgment

        body = self.entry.body or {}
        if "ranks" not in body:
            raise InvalidInput("kind", got=self.task.kind, allowed="a task of kind rank or pair")
        return Judgment(
            task=self.task.id,
            labeler=self.entry.person or "",
            ranks=body["ranks"],
            shown=tuple(body["shown"] or ()),
            lengths={answer: len(self.answers[answer].text) for answer in body["ranks"]},
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A list of entries, named by its digest."""

    digest: str
    """SHA-256 of the entries' ids, one a line."""
    filter: Filter
    """What was asked for, with `until` filled in."""
    head: str
    """Id of the last entry that was read: who keeps it can prove that nothing before it was changed."""
    entries: int
    """How many there are."""
    made: float
    """When it was made first."""
    tainted: float | None
    """When some of its entries were erased."""


def _common(note: str, seconds: float, details: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    check_object("details", details, limits.details_bytes)
    return {
        "note": check_text("note", note, limits.note_characters, empty=True),
        "seconds": check_number("seconds", seconds, 0.0),
        "details": dict(details),
    }
