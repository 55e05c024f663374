"""What the store takes and returns: people, projects, prompts, tasks and leases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairlead.types import Message

RANKED_KINDS = ("rank", "pair")
"""Kinds of tasks whose judgment is a ranking of answers."""
WRITTEN_KINDS = ("write", "edit", "prompt")
"""Kinds of tasks whose judgment is a text: an answer, a better answer, a prompt."""
TASK_KINDS = (*RANKED_KINDS, *WRITTEN_KINDS)
"""Kinds of tasks."""
PLAIN_TEXT = "text"
"""Role of the only turn of a prompt that is plain text, which no chat template renders."""
REASONS = ("random", "uncertain", "fresh", "gold", "audit")
"""Why a task was chosen. Only tasks drawn at random may measure anything."""
PERSON_KINDS = ("labeler", "judge", "simulated", "import")
"""Kinds of people; all but labelers are programs."""
JUDGE = "judge"
"""The kind of models that label. Their rankings are apart from those of all others."""
BESIDES_JUDGES = tuple(kind for kind in PERSON_KINDS if kind != JUDGE)
"""Kinds of people whose rankings figures of agreement and exports have together."""
ROLES = ("labeler", "reviewer", "lead", "auditor")
"""Roles of people."""
COHORTS = ("train", "heldout")
"""Whether rankings of a person may be trained on, or only measure."""


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    """What a lead sets for a project."""

    name: str
    """Unique; 1 to 64 of a-z, 0-9, `_`, `.` and `-`."""
    kinds: tuple[str, ...] = ("rank",)
    """Kinds of tasks that it has."""
    min_answers: int = 2
    """Fewest answers of a task to rank."""
    max_answers: int = 9
    """Most answers of a task to rank. InstructGPT had 4 to 9 (section 3.5)."""
    overlap: int = 1
    """Judgments wanted for a shared task."""
    shared_share: float = 1.0
    """Share of the tasks, drawn at random, that are shared; the others want one judgment."""
    gold_share: float = 0.0
    """Share of a person's tasks that are gold questions."""
    lease_seconds: float = 1_800.0
    """How long a person may work on a task before somebody else may have it."""
    program_lease_seconds: float = 60.0
    """The same for programs."""
    revise_seconds: float = 86_400.0
    """How long after it was handed in a judgment may be revised or withdrawn by its author."""
    judges: str = "none"
    """Whether the rankings of judges are trained on: `none` or `train`."""
    audit_share: float = 0.1
    """Share of the tasks that a judge labels, drawn at random, which people label too."""
    least_gold: float = 0.0
    """Share of right answers that the quiz asks for before the first task, and below which a labeler is held
    until they pass it again; 0: nobody is held."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project."""

    id: str
    """Its id."""
    settings: ProjectSettings
    """What a lead has set."""
    state: str
    """`active`, `paused` or `finished`; only an active one gives out tasks."""
    made: float
    """When it was made."""


@dataclass(frozen=True, slots=True)
class Guideline:
    """A version of the guidelines of a project."""

    project: str
    """Id of the project."""
    version: int
    """From 1."""
    text: str
    """Markdown."""
    sha256: str
    """Digest of the text."""
    made: float
    """When it was added."""


@dataclass(frozen=True, slots=True)
class Reading:
    """That a person has read a version of the guidelines."""

    version: int
    """The version."""
    at: float
    """When it was read last."""
    quiz: float | None
    """Best share of right answers in its quiz; None if there was none."""


@dataclass(frozen=True, slots=True)
class NewPerson:
    """A person to add."""

    kind: str
    """One of PERSON_KINDS."""
    handle: str
    """Name by which leads know the person; unique."""
    role: str = "labeler"
    """One of ROLES."""
    cohort: str = "train"
    """One of COHORTS."""
    subject: str | None = None
    """Who the person is for an identity provider; unique."""
    hourly_cost: float | None = None
    """Cost of an hour of work, in the unit of the operator."""
    active: bool = False
    """Whether the person may begin without an invitation; programs always may."""


@dataclass(frozen=True, slots=True)
class Person:
    """A labeler, reviewer, lead or auditor, or a program that labels."""

    id: str
    """Random; all that remains in the log of a person who is forgotten."""
    kind: str
    """One of PERSON_KINDS."""
    role: str
    """One of ROLES."""
    state: str
    """`invited`, `active`, `paused` or `forgotten`."""
    cohort: str
    """One of COHORTS."""
    handle: str | None
    """None once forgotten."""
    subject: str | None
    """Who the person is for an identity provider."""
    pseudonym: str | None
    """Random name that exports show. None once forgotten."""
    hourly_cost: float | None
    """Cost of an hour of work."""
    paused: float | None
    """When the person was paused; None if they are not, or if it was before this was kept."""
    made: float
    """When the person was added."""


@dataclass(frozen=True, slots=True)
class NewPrompt:
    """A prompt to add."""

    turns: tuple[Message, ...]
    """At least one; the last is not the assistant's. Plain text, for a model without a chat template, is one
    turn of the role `text`."""
    source: str = "import"
    """Where it comes from: `import`, `gateway`, `labeler`, or a file."""
    consent: str = ""
    """By what its author agreed, with the version of the notice."""
    subject: str | None = None
    """Keyed hash of the end user, see `Store.subject`."""
    author: str | None = None
    """Person who wrote it."""
    split_group: str | None = None
    """What decides the side of a split in place of the prompt, such as a user or a document."""
    cluster: str | None = None
    """Near-duplicates have the same."""
    language: str = ""
    """Code of the language."""
    state: str = "screened"
    """`screened`, or `new` for one that a reviewer has to accept first."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt."""

    id: str
    """Digest of the turns."""
    turns: tuple[Message, ...]
    """Its messages."""
    source: str
    """Where it comes from."""
    consent: str
    """By what its author agreed."""
    subject: str | None
    """Keyed hash of the end user."""
    author: str | None
    """Person who wrote it."""
    split_group: str | None
    """What decides the side of a split."""
    cluster: str | None
    """Near-duplicates have the same."""
    language: str
    """Code of the language."""
    state: str
    """`new`, `screened` or `rejected`; only screened ones are shown to labelers."""
    made: float
    """When it was added."""


@dataclass(frozen=True, slots=True)
class NewAnswer:
    """An answer to add."""

    text: str
    """May be empty: a policy may say nothing."""
    author: str | None = None
    """Person who wrote it; such a task is never given to them."""
    run: str = ""
    """Run whose policy said it."""
    weight_version: str = ""
    """Weights that said it."""
    model_digest: str = ""
    """Digest of that model."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Temperature, seed and so on."""
    request_id: str = ""
    """Id of the request that it answers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a prompt."""

    id: str
    """Digest of the prompt's id and the text."""
    prompt: str
    """Id of the prompt."""
    text: str
    """Its text."""
    author: str | None
    """Person who wrote it."""
    run: str
    """Run whose policy said it."""
    weight_version: str
    """Weights that said it."""
    model_digest: str
    """Digest of that model."""
    sampling: Mapping[str, Any]
    """Temperature, seed and so on."""
    request_id: str
    """Id of the request that it answers."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to add, with its prompt and answers."""

    kind: str
    """One of TASK_KINDS."""
    prompt: NewPrompt
    """What was asked."""
    answers: tuple[NewAnswer, ...] = ()
    """To rank: as many as the project allows; `pair`: 2; `edit`: at least 1; `write` and `prompt`: none."""
    overlap: int | None = None
    """Judgments wanted; by default drawn by the project's `shared_share`."""
    priority: int = 0
    """Higher is given out first."""
    why: str = "random"
    """One of REASONS."""
    round: int = 0
    """Round of an iteration."""
    gold: Mapping[str, Any] | None = None
    """Accepted judgment and explanation, for `why="gold"`."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something to judge."""

    id: str
    """Random."""
    project: str
    """Id of the project."""
    number: int
    """From 1 in the order of import; smaller is given out first among equal priorities."""
    kind: str
    """One of TASK_KINDS."""
    prompt: str | None
    """Id of the prompt. None once it, or an answer, is erased."""
    answers: tuple[str, ...]
    """Ids of the answers, in the order of import."""
    overlap: int
    """Judgments wanted."""
    priority: int
    """Higher is given out first."""
    why: str
    """One of REASONS."""
    round: int
    """Round of an iteration."""
    gold: Mapping[str, Any] | None
    """Accepted judgment and explanation."""
    state: str
    """`open`, `closed` (has its judgments) or `withdrawn`."""
    review: str | None
    """Reason for which three people skipped it, until a reviewer has looked at it."""
    made: float
    """When it was added."""


@dataclass(frozen=True, slots=True)
class Added:
    """A task or prompt after an import."""

    id: str
    """Its id."""
    new: bool
    """False if the same content was there before."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A person's lease on a task, or what became of it."""

    id: str
    """Random."""
    task: str
    """Id of the task."""
    person: str
    """Id of the person."""
    shown: tuple[str, ...]
    """Ids of the answers in the order that this person sees."""
    guideline: int
    """Version of the guidelines when the task was given out; 0 if there were none."""
    since: float
    """When it was given out."""
    until: float
    """When the lease ends."""
    state: str
    """`leased`, `done`, `late`, `skipped` or `withdrawn`."""
    reason: str | None
    """Why it was skipped."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A task as a labeler sees it: nothing of it names a model, a run or an earlier judgment."""

    assignment: Assignment
    """The lease."""
    kind: str
    """Kind of the task."""
    turns: tuple[Message, ...]
    """The prompt."""
    answers: tuple[tuple[str, str], ...]
    """Ids and texts of the answers, in the order shown."""
    draft: Mapping[str, Any] | None
    """What the person saved before."""
