"""What the page of a task shows: the prompt, the answers in this person's order, and what they said so far.

Nothing here names a model, a run, a version or what others said.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.responses import Response
from markupsafe import Markup

from fairlead.errors import NotFound
from fairlead.types import Message
from services.feedback.pages.differences import Part, differences
from services.feedback.pages.form import Fields, Form
from services.feedback.pages.home import own_counts
from services.feedback.pages.markdown import rendered
from services.feedback.pages.page import Renderer
from services.feedback.pages.said import (
    FLAGS,
    QUALITIES,
    SKIP_REASONS,
    STRENGTHS,
    UNACCEPTABLE,
    layout_of,
)
from services.feedback.service import Service
from services.feedback.store.records import PLAIN_TEXT, Guideline, Offer, Person

_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "Instructions", PLAIN_TEXT: ""}
_NOT_KEPT = ("request", "opened", "seconds", "action")
"""Fields of a form that a draft does not keep."""
_TEMPLATES = {"rank": "rank", "pair": "pair", "write": "write", "edit": "edit", "prompt": "write"}


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a person or a model."""

    raw: str
    """As it was written."""
    html: Markup
    """As Markdown."""
    label: str = ""
    """Who says it, or which answer it is."""


@dataclass(frozen=True, slots=True)
class Filled:
    """The fields of a form, for the template."""

    fields: Fields
    """Values by the name of the field."""

    def value(self, name: str) -> str:
        """Return the value of a field."""
        return next(iter(self.fields.get(name, ())), "")

    def has(self, name: str, value: object) -> bool:
        """Return whether a field has a value."""
        return str(value) in self.fields.get(name, ())

    def count(self, name: str) -> int:
        """Return how many values a field has."""
        return len(self.fields.get(name, ()))


@dataclass(frozen=True, slots=True)
class Purpose:
    """Why a task is shown."""

    action: str
    """Path to which its form is sent."""
    judgment: str = ""
    """Id of the judgment that is revised; empty for a task in work."""
    handed_in: str = ""
    """Id of what was handed in just before."""
    missing: Sequence[tuple[str, str]] = ()
    """What the form that was sent lacks."""
    saved: bool = False
    """Whether a draft was saved just before."""
    parts: Sequence[Part] | None = None
    """What the person has changed in the answer that they edit, if they want to see it."""


def text_of(raw: str, label: str = "") -> Text:
    """Return a text with its HTML."""
    return Text(raw, rendered(raw), label)


def turns_of(turns: Sequence[Message]) -> list[Text]:
    """Return the turns of a prompt."""
    return [text_of(turn.content, _SPEAKERS.get(turn.role, turn.role)) for turn in turns]


def guideline_of(service: Service, project: str) -> tuple[Guideline, Markup] | None:
    """Return the newest guidelines with their HTML."""
    found = service.store.projects.guidelines(project)
    return (found[-1], rendered(found[-1].text)) if found else None


def task_page(
    service: Service, renderer: Renderer, person: Person, offer: Offer, purpose: Purpose, filled: Fields
) -> Response:
    """Return the page on which a person does a task, or revises what they said."""
    store = service.store
    project = store.projects.get(store.tasks.get(offer.assignment.task).project)
    answers = [text_of(text, chr(ord("A") + place)) for place, (_, text) in enumerate(offer.answers)]
    return renderer.page(
        _TEMPLATES[layout_of(offer)],
        person,
        400 if purpose.missing else 200,
        project=project,
        offer=offer,
        layout=layout_of(offer),
        turns=turns_of(offer.turns),
        answers=answers,
        filled=Filled(filled),
        purpose=purpose,
        guideline=guideline_of(service, project.id),
        own=own_counts(service, project.id, person.id),
        request_key=secrets.token_urlsafe(16),
        opened=round(time.time(), 1),
        flags=FLAGS,
        qualities=QUALITIES,
        reasons=SKIP_REASONS,
        strengths=STRENGTHS,
        unacceptable=UNACCEPTABLE,
    )


def helped_edit(form: Form, offer: Offer, purpose: Purpose) -> tuple[Purpose, Fields] | None:
    """Return what a button of an edit asks for: an answer to start from, or what was changed in it."""
    if form.one("action") not in ("copy", "changes"):
        return None
    place = form.whole("base") or 0
    if not 1 <= place <= len(offer.answers):
        return replace(purpose, missing=[("base", "Choose the answer to start from.")]), form.fields
    base = offer.answers[place - 1][1]
    if form.one("action") == "copy":
        return purpose, {**form.fields, "text": [base]}
    parts = differences(base, form.one("text"))
    return replace(purpose, parts=parts), form.fields


def compared(offer: Offer, first: int, second: int) -> list[Part] | None:
    """Return the words in which two answers differ, by the places at which they are shown.

    Raises:
        NotFound: there is no answer at a place.
    """
    if max(first, second) > len(offer.answers):
        raise NotFound(f"the task has {len(offer.answers)} answers")
    return differences(offer.answers[first - 1][1], offer.answers[second - 1][1])


def draft_of(form: Form) -> dict[str, Any]:
    """Return what a draft keeps of a form, as the script sends it too."""
    kept = {name: list(values) for name, values in form.fields.items() if name not in _NOT_KEPT}
    return {"fields": kept}


def draft_fields(draft: Mapping[str, Any] | None) -> Fields:
    """Return the fields of a draft, saved by the script or without it."""
    found = (draft or {}).get("fields")
    if not isinstance(found, dict):
        return {}
    return {
        str(name): [str(value) for value in values]
        for name, values in found.items()
        if isinstance(values, list)
    }
