"""The section `[feedback]`: the service that gives tasks to people and programs and keeps what they say."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from fairlead.config.base import Section
from fairlead.config.http import HttpSection, origin

FeedbackKind = Literal["rank", "pair", "write", "edit", "prompt"]
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def _origin_or_none(text: str) -> str:
    return origin(text) if text else text


def _project_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("1 to 64 of a-z, 0-9, `_`, `.` and `-`")
    return text


def _function_or_none(text: str) -> str:
    if text and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError("module:function")
    return text


def _without_password(text: str) -> str:
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme not in ("postgresql", "postgres"):
            raise ValueError("a file, or postgresql://user@host/database")
        if parts.password is not None:
            raise ValueError("an address without a password: it belongs in PGPASSWORD or in ~/.pgpass")
    return text


class ProjectSection(Section):
    """The project that the service creates at its start if the store has none of this name. A lead changes it
    later without this file.
    """

    name: Annotated[str, AfterValidator(_project_name)] = "default"
    """Name of the project."""
    kinds: tuple[FeedbackKind, ...] = Field(default=("rank",), min_length=1)
    """Kinds of its tasks: `rank` K answers, compare a `pair`, `write` an answer, `edit` one, write a
    `prompt`."""
    min_answers: int = Field(default=2, ge=2, le=16)
    """Fewest answers of a task to rank."""
    max_answers: int = Field(default=9, ge=2, le=16)
    """Most answers of a task to rank. InstructGPT had 4 to 9."""
    overlap: int = Field(default=1, ge=1, le=1_000)
    """Judgments wanted for a shared task. More than one measures agreement; a reward model learns as much
    from as many judgments of different prompts."""
    shared_share: float = Field(default=0.15, ge=0, le=1)
    """Share of the tasks, drawn at random, that are shared."""
    gold_share: float = Field(default=0.0, ge=0, le=1)
    """Share of a person's tasks that are questions with known answers."""
    lease_seconds: float = Field(default=1_800.0, ge=1, le=604_800)
    """How long a person may work on a task before somebody else may have it; pages renew it while in use."""
    program_lease_seconds: float = Field(default=60.0, ge=1, le=604_800)
    """The same for programs."""
    revise_seconds: float = Field(default=86_400.0, ge=0)
    """How long after it was handed in a judgment may be revised or withdrawn by its author."""
    judges: Literal["none", "train"] = "none"
    """Whether rankings of model judges may be exported for training, in a file of their own."""
    audit_share: float = Field(default=0.1, ge=0.05, le=1)
    """Share of the tasks that a model judge labels, drawn at random, which people label too."""
    least_gold: float = Field(default=0.0, ge=0, le=1)
    """Share of right answers that the quiz about the guidelines asks for before a labeler's first task, and
    of questions with known answers below which they get no task until they pass it again. 0: nobody is held.
    """

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        if self.max_answers < self.min_answers:
            raise ValueError("`max_answers` must be at least `min_answers`")
        return self


class CollectSection(Section):
    """Which prompts of the deployed policy are kept, of those that a gateway hands in (`gateway.collect`)."""

    share: float = Field(default=1.0, ge=0, le=1)
    """Share of the exchanges that are looked at, drawn at random; of the others only their number is kept."""
    per_user: int = Field(default=200, ge=1)
    """Most prompts of one end user (`user` of a request) of one API key. Requests without `user` count as one
    user of their key."""
    per_key: int = Field(default=20_000, ge=1)
    """Most prompts of one API key of the gateway, so that no caller dominates."""
    similarity: float = Field(default=0.8, gt=0.5, le=1)
    """Prompts whose texts are at least as similar as this to one that is there are left out: the estimated
    share of common runs of five characters."""
    prefix_characters: int = Field(default=300, ge=0)
    """Prompts that begin with the same characters, as many as this, are left out, as in InstructGPT. 0: no
    such rule."""
    keep_days: float = Field(default=90.0, gt=0)
    """Days after which a prompt that nobody has screened is deleted."""
    detector: Annotated[str, AfterValidator(_function_or_none)] = ""
    """Python function `module:function` that finds more personal data than the patterns do: it gets a text
    and returns a list of (start, end, kind), where the kind is a word such as `NAME`. If it fails, the
    prompt is not kept."""


class FeedbackSection(HttpSection):
    """The feedback service: an HTTP API, and pages, where people and programs rank answers and write
    demonstrations.
    """

    origin: Annotated[str, AfterValidator(_origin_or_none)] = ""
    """Origin under which people reach the service, such as `https://feedback.example.com`: only its pages may
    send changes. Set it where a proxy publishes the service, or where people reach it from other machines.
    Empty: the address that a browser shows."""
    store: Annotated[str, AfterValidator(_without_password)] = ""
    """Where everything is kept: a SQLite file on a disk of this machine (not on a network file system), or
    `postgresql://user@host/database`. Empty: `feedback.db` in the run's folder."""
    tasks: tuple[str, ...] = ()
    """Files of JSON lines whose tasks are added to the project at the start, as `fairlead generate` writes
    them; the same content again is the same task."""
    project: ProjectSection = ProjectSection()
    """Defaults of the first project."""
    collect: CollectSection = CollectSection()
    """Prompts of the deployed policy."""

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.replicas > 1 and "://" not in self.store:
            raise ValueError("`replicas` above 1 needs a `store` in PostgreSQL")
        return self
