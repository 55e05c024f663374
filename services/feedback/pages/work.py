"""The tasks of a labeler: take one, hand it in, save it, skip it, and compare two answers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from fairlead.errors import InvalidInput
from services.feedback.handing_in import hand_in, skip
from services.feedback.holding import why_not
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import read_form
from services.feedback.pages.page import HEADERS, Renderer, letter, routes
from services.feedback.pages.said import SKIP_REASONS, Incomplete, said
from services.feedback.pages.task_page import (
    Purpose,
    compared,
    draft_fields,
    draft_of,
    helped_edit,
    task_page,
)
from services.feedback.service import Service
from services.feedback.store.records import Person

_ENTRY = re.compile(r"[0-9a-f]{64}")
Place = Annotated[int, Query(ge=1)]


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    pages = _Work(service, renderer)
    api.post("/projects/{project}/next")(pages.start)
    api.get("/assignments/{assignment}")(pages.show)
    api.post("/assignments/{assignment}")(pages.done)
    api.post("/assignments/{assignment}/skip")(pages.give_back)
    api.get("/assignments/{assignment}/comparison")(pages.compare)
    api.get("/assignments/{assignment}/comparison.json")(pages.compare_json)
    return api


class _Work:
    """The handlers."""

    def __init__(self, service: Service, renderer: Renderer) -> None:
        self._service = service
        self._renderer = renderer
        self._store = service.store
        self._run = service.threads.run

    async def start(self, project: str, identity: CurrentIdentity) -> Response:
        """Give the person a task."""
        known = await self._run(self._store.projects.get, project)
        return await self._run(self._next, known.id, identity.worker)

    async def show(self, assignment: str, request: Request, identity: CurrentIdentity) -> Response:
        """Show a task that is not handed in."""

        def build_page() -> Response:
            offer = self._store.leases.get(assignment, identity.worker.id)
            if offer.assignment.state != "leased":
                project = self._store.projects.get(self._store.tasks.get(offer.assignment.task).project)
                return self._renderer.redirect(f"/projects/{project.settings.name}/mine")
            after = request.query_params.get("after", "")
            purpose = Purpose(
                f"/assignments/{assignment}",
                handed_in=after if _ENTRY.fullmatch(after) else "",
                saved="saved" in request.query_params,
            )
            filled = draft_fields(offer.draft)
            return task_page(self._service, self._renderer, identity.worker, offer, purpose, filled)

        return await self._run(build_page)

    async def done(self, assignment: str, request: Request, identity: CurrentIdentity) -> Response:
        """Hand a task in, or save it, or help with an edit."""
        form, person = await read_form(request), identity.worker
        offer = await self._run(self._store.leases.get, assignment, person.id)
        if form.one("action") == "save":
            await self._run(self._store.leases.save_draft, assignment, person.id, draft_of(form))
            return self._renderer.redirect(f"/assignments/{assignment}?saved")
        purpose = Purpose(f"/assignments/{assignment}")
        if (helped := helped_edit(form, offer, purpose)) is not None:
            return await self._run(task_page, self._service, self._renderer, person, offer, *helped)
        try:
            found = said(form, offer)
        except Incomplete as error:
            purpose = replace(purpose, missing=error.missing)
            return await self._run(
                task_page, self._service, self._renderer, person, offer, purpose, form.fields
            )
        request_key = form.one("request") or None
        receipt = await hand_in(self._service, assignment, person.id, found, request=request_key)
        task = await self._run(self._store.tasks.get, offer.assignment.task)
        return await self._run(self._next, task.project, person, receipt.entry)

    async def give_back(self, assignment: str, request: Request, identity: CurrentIdentity) -> Response:
        """Skip a task."""
        form, person = await read_form(request), identity.worker
        reason, request_key = form.one("reason"), form.one("request") or None
        if reason not in SKIP_REASONS:
            raise InvalidInput("reason", got=reason, allowed=", ".join(SKIP_REASONS))
        offer = await self._run(self._store.leases.get, assignment, person.id)
        await skip(self._service, assignment, person.id, reason, note=form.one("note"), request=request_key)
        task = await self._run(self._store.tasks.get, offer.assignment.task)
        return await self._run(self._next, task.project, person)

    async def compare(
        self, assignment: str, first: Place, second: Place, identity: CurrentIdentity
    ) -> Response:
        """Show the words in which two answers differ."""

        def build_page() -> Response:
            parts = compared(self._store.leases.get(assignment, identity.worker.id), first, second)
            return self._renderer.page(
                "comparison", identity.worker, parts=parts, first=letter(first), second=letter(second)
            )

        return await self._run(build_page)

    async def compare_json(
        self, assignment: str, first: Place, second: Place, identity: CurrentIdentity
    ) -> Response:
        """Return the same for the script."""

        def build_page() -> Response:
            parts = compared(self._store.leases.get(assignment, identity.worker.id), first, second)
            return JSONResponse({"parts": parts}, headers=dict(HEADERS))

        return await self._run(build_page)

    def _next(self, project: str, person: Person, handed_in: str = "") -> Response:
        """Return a redirect to the next task, or to the start page if there is none."""
        known = self._store.projects.get(project)
        if why_not(self._service, known, person):
            return self._renderer.redirect(f"/projects/{known.settings.name}/quiz")
        offer = self._store.leases.take(person.id, project)
        if offer is None:
            return self._renderer.redirect(f"/?nothing={known.settings.name}")
        after = f"?after={handed_in}" if handed_in else ""
        return self._renderer.redirect(f"/assignments/{offer.assignment.id}{after}")
