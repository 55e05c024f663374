"""The tasks of labelers and programs: get one, see it again, keep it, and save a draft.

Nothing here names a model, a run, a version or what others said.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from fastapi import Response as HttpResponse
from pydantic import Field

from services.feedback import holding
from services.feedback.api.bodies import (
    MAX_JUDGMENTS,
    Body,
    Kind,
    Response,
    Turn,
    routes,
    turns_shown,
)
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.records import TASK_KINDS, Offer

RETRY_SECONDS = 5
"""Delay after which a caller may ask for a task again."""


class NextRequest(Body):
    """Which task is wanted."""

    project: str | None = Field(default=None, max_length=64)
    """Name of the project; that of the configuration by default."""
    kinds: list[Kind] | None = Field(default=None, min_length=1)
    """Kinds of tasks; all by default."""


class SeveralRequest(NextRequest):
    """Which tasks are wanted."""

    count: int = Field(ge=1, le=MAX_JUDGMENTS)
    """How many at most."""


class AnswerShown(Response):
    """An answer to judge."""

    id: str
    """Names the answer in the judgment."""
    text: str
    """Its text."""


class TaskShown(Response):
    """A task, as it is given to one person."""

    assignment: str
    """Names the person's work on this task."""
    kind: str
    """`rank`, `pair`, `write`, `edit` or `prompt`."""
    prompt: list[Turn]
    """The conversation to answer."""
    answers: list[AnswerShown]
    """The answers, in an order drawn for this person, which stays."""
    guideline: int
    """Version of the guidelines that apply; 0 if there are none."""
    state: str
    """`leased`, `done`, `late`, `skipped` or `withdrawn`."""
    until: float
    """When the lease ends, in seconds since 1970; renew it before."""
    seconds: float
    """Seconds until then."""
    draft: dict[str, Any] | None
    """What was saved before."""


class TasksShown(Response):
    """Several tasks, as they are given to one person."""

    assignments: list[TaskShown]
    """Those that the person works on already come first; none if there is nothing to do now."""


class LeaseShown(Response):
    """A lease that was renewed."""

    until: float
    """When it ends, in seconds since 1970."""
    seconds: float
    """Seconds until then."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("work")
    store, run = service.store, service.threads.run

    @api.post(
        "/next",
        response_model=TaskShown,
        responses={204: {"description": "There is nothing to do now; Retry-After says when to ask again."}},
        summary="Get a task",
    )
    async def next_task(body: NextRequest, identity: CurrentIdentity) -> HttpResponse | TaskShown:
        """Return the task that this person works on, or a new one."""
        project = await run(store.projects.get, body.project or service.section.project.name)
        await run(holding.check, service, project, identity.worker)
        kinds = body.kinds or TASK_KINDS
        offer = await run(store.leases.take, identity.worker.id, project.id, kinds=kinds)
        if offer is None:
            return HttpResponse(status_code=204, headers={"retry-after": str(RETRY_SECONDS)})
        return shown(offer)

    @api.post("/assignments", response_model=TasksShown, summary="Get several tasks")
    async def next_tasks(body: SeveralRequest, identity: CurrentIdentity) -> TasksShown:
        """Return the tasks that this person works on, and new ones. Each has a lease of its own, so take as
        many as are done before the first ends.
        """
        project = await run(store.projects.get, body.project or service.section.project.name)
        await run(holding.check, service, project, identity.worker)
        kinds = body.kinds or TASK_KINDS
        offers = await run(
            store.leases.take_many, identity.worker.id, project.id, kinds=kinds, count=body.count
        )
        return TasksShown(assignments=[shown(offer) for offer in offers])

    @api.get("/assignments/{assignment}", response_model=TaskShown, summary="Show a task again")
    async def assignment_again(assignment: str, identity: CurrentIdentity) -> TaskShown:
        """Return a task as it was given to this person, also after it was handed in."""
        return shown(await run(store.leases.get, assignment, identity.worker.id))

    @api.put("/assignments/{assignment}/lease", response_model=LeaseShown, summary="Renew a lease")
    async def renew(assignment: str, identity: CurrentIdentity) -> LeaseShown:
        """Let the lease begin again."""
        until = await run(store.leases.renew, assignment, identity.worker.id)
        return LeaseShown(until=until, seconds=_left(until))

    @api.put("/assignments/{assignment}/draft", status_code=204, summary="Save a draft")
    async def save_draft(assignment: str, body: dict[str, Any], identity: CurrentIdentity) -> None:
        """Keep what is not handed in yet; it comes back with the task."""
        await run(store.leases.save_draft, assignment, identity.worker.id, body)

    return api


def shown(offer: Offer) -> TaskShown:
    """Return a task as the API shows it."""
    assignment = offer.assignment
    return TaskShown(
        assignment=assignment.id,
        kind=offer.kind,
        prompt=turns_shown(offer.turns),
        answers=[AnswerShown(id=answer, text=text) for answer, text in offer.answers],
        guideline=assignment.guideline,
        state=assignment.state,
        until=assignment.until,
        seconds=_left(assignment.until),
        draft=None if offer.draft is None else dict(offer.draft),
    )


def _left(until: float) -> float:
    return max(0.0, round(until - time.time(), 3))
