"""The pages of a labeler: projects with work, and the task that is to be done."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import Conflict, InvalidInput
from services.feedback.api.hand_in import REASONS
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.rendering import Pages
from services.feedback.service import Service
from services.feedback.store.judged import Ranking, Said, Writing
from services.feedback.store.records import RANKED_KINDS, Offer, Person
from services.runtime.http.forms import form_of

_RANK, _RATING = "rank.", "rating."


def router(service: Service, pages: Pages) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(include_in_schema=False)
    store, run = service.store, service.threads.run

    @routes.get("/")
    async def home(identity: CurrentIdentity) -> Response:
        found = await run(store.projects.all)
        projects = [one.settings.name for one in found if one.state == "active"]
        return pages.page("home", person=identity.person, projects=projects)

    @routes.get("/work/{project}")
    async def work(project: str, identity: CurrentIdentity) -> Response:
        known = await run(store.projects.get, project)
        offer = await run(store.leases.take, identity.worker.id, known.id)
        return _task(identity.worker, project, offer, {}, error=None)

    @routes.post("/work/{project}/{assignment}")
    async def hand_in(project: str, assignment: str, request: Request, identity: CurrentIdentity) -> Response:
        fields = form_of(request.scope)
        given = dict(fields)
        offer = await run(store.leases.get, assignment, identity.worker.id)
        try:
            if given.get("do") == "skip":
                reason = given.get("reason", "")
                if reason not in REASONS:
                    raise InvalidInput("reason", got=reason, allowed=f"one of {', '.join(REASONS)}")
                note = given.get("note", "")
                await run(store.judgments.skip, assignment, identity.worker.id, reason, note=note)
                service.metrics.skips.labels(reason).inc()
            else:
                said = _said(offer, fields)
                receipt = await run(store.judgments.hand_in, assignment, identity.worker.id, said)
                kind = "ranking" if isinstance(said, Ranking) else "text"
                service.metrics.judgments.labels(kind).inc(not receipt.repeated)
                service.metrics.late.inc(receipt.late and not receipt.repeated)
        except (InvalidInput, Conflict) as error:
            return _task(identity.worker, project, offer, given, error=str(error))
        return pages.redirect(f"/work/{project}")

    def _task(
        person: Person, project: str, offer: Offer | None, given: Mapping[str, str], *, error: str | None
    ) -> Response:
        if offer is None:
            return pages.page("nothing", person=person, project=project)
        return pages.page(
            "task",
            person=person,
            status=200 if error is None else 400,
            project=project,
            offer=offer,
            ranked=offer.kind in RANKED_KINDS,
            places=range(1, len(offer.answers) + 1),
            given=given,
            reasons=REASONS,
            error=error,
            form=secrets.token_hex(8),
        )

    return routes


def _said(offer: Offer, fields: Sequence[tuple[str, str]]) -> Said:
    """Return what a form says about a task.

    Raises:
        InvalidInput: a place is missing or is no number.
    """
    given = dict(fields)
    seconds = max(0.0, time.time() - offer.assignment.since)
    note = given.get("note", "")
    if offer.kind not in RANKED_KINDS:
        base = offer.answers[0][0] if offer.kind == "edit" else None
        return Writing(text=given.get("text", ""), base=given.get("base") or base, note=note, seconds=seconds)
    ranks = {}
    for number, (answer, _) in enumerate(offer.answers, start=1):
        value = given.get(_RANK + answer, "")
        if not value:
            raise InvalidInput(f"answer {number}", got="no place", allowed="a place for every answer")
        ranks[answer] = _whole(f"answer {number}", value)
    ratings = {
        answer: _whole("rating", given[_RATING + answer])
        for answer, _ in offer.answers
        if given.get(_RATING + answer)
    }
    return Ranking(ranks=ranks, ratings=ratings, note=note, seconds=seconds)


def _whole(field: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 4):
        raise InvalidInput(field, got=value, allowed="a whole number")
    return int(value)
