"""What a person said in a project, with what can still be changed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.feedback.identity import CurrentIdentity
from services.feedback.pages.page import Renderer, letter, routes
from services.feedback.pages.said import SKIP_REASONS
from services.feedback.service import Service
from services.feedback.store.judged import COUNTING, HANDED_IN, Entry
from services.feedback.store.records import Assignment, Person, Project

_ROWS = 50
_EXCERPT_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Row:
    """A task that a person has had."""

    assignment: Assignment
    """The person's assignment."""
    kind: str
    """Kind of the task."""
    prompt: str
    """How its prompt begins; empty once it is erased."""
    said: str
    """What the person said, in short."""
    entry: Entry | None
    """What counts; None if nothing does."""
    at: float
    """When it was handed in, skipped or given out."""
    changeable: float | None
    """Until when it may be changed; None if it may not."""


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the route."""
    api = routes()

    @api.get("/projects/{project}/mine")
    async def mine(project: str, request: Request, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            person, store = identity.worker, service.store
            known = store.projects.get(project)
            assignments = store.leases.page(person.id, known.id)
            rows = [_row(service, known, person, one) for one in assignments[:_ROWS]]
            return renderer.page(
                "mine",
                person,
                project=known,
                rows=rows,
                more=len(assignments) > _ROWS,
                changed="changed" in request.query_params,
                request_key=secrets.token_urlsafe(16),
            )

        return await service.threads.run(build_page)

    return api


def _row(service: Service, project: Project, person: Person, assignment: Assignment) -> Row:
    store = service.store
    task = store.tasks.get(assignment.task)
    prompt = store.prompts.get(task.prompt).turns[-1].content if task.prompt else ""
    entries = [one for one in store.log.of_task(task.id) if one.person == person.id]
    replaced = {one.replaces for one in entries}
    counts = next((one for one in entries if one.kind in COUNTING and one.id not in replaced), None)
    first = next((one for one in entries if one.kind in HANDED_IN), None)
    until = None if first is None else first.at + project.settings.revise_seconds
    open_ = counts is not None and counts.body is not None and until is not None and until > time.time()
    return Row(
        assignment=assignment,
        kind=task.kind,
        prompt=excerpt(prompt),
        said=_said(assignment, counts),
        entry=counts,
        at=entries[-1].at if entries else assignment.since,
        changeable=until if open_ else None,
    )


def _said(assignment: Assignment, entry: Entry | None) -> str:
    if assignment.state == "skipped":
        return SKIP_REASONS.get(assignment.reason or "", assignment.reason or "")
    if entry is None or entry.body is None:
        return ""
    if "text" in entry.body:
        return excerpt(str(entry.body["text"]))
    return order_of(entry.body["ranks"], assignment.shown)


def order_of(ranks: dict[str, int], shown: Sequence[str]) -> str:
    """Return a ranking in letters, best first: `B > A = C`."""
    places = {answer: place for place, answer in enumerate(shown, start=1)}
    by_rank: dict[int, list[str]] = {}
    for answer in shown:
        by_rank.setdefault(ranks[answer], []).append(letter(places[answer]))
    return " > ".join(" = ".join(by_rank[rank]) for rank in sorted(by_rank))


def excerpt(text: str) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(text[: 4 * _EXCERPT_CHARACTERS].split())
    return line if len(line) <= _EXCERPT_CHARACTERS else line[: _EXCERPT_CHARACTERS - 1] + "…"
