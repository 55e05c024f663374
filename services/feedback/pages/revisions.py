"""Changing and withdrawing what a person has handed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import NotFound
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import read_form
from services.feedback.pages.page import Renderer, routes
from services.feedback.pages.said import Incomplete, fields, said
from services.feedback.pages.task_page import Purpose, helped_edit, task_page
from services.feedback.service import Service
from services.feedback.store.records import Offer, Person


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    @api.get("/judgments/{judgment}")
    async def form(judgment: str, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            offer, body = own_judgment(service, judgment, identity.worker)
            purpose = Purpose(f"/judgments/{judgment}", judgment=judgment)
            return task_page(service, renderer, identity.worker, offer, purpose, fields(body, offer))

        return await run(build_page)

    @api.post("/judgments/{judgment}")
    async def revise(judgment: str, request: Request, identity: CurrentIdentity) -> Response:
        form, person = await read_form(request), identity.worker
        offer, _ = await run(own_judgment, service, judgment, person)
        purpose = Purpose(f"/judgments/{judgment}", judgment=judgment)
        if (helped := helped_edit(form, offer, purpose)) is not None:
            return await run(task_page, service, renderer, person, offer, *helped)
        try:
            found = said(form, offer)
        except Incomplete as error:
            purpose = replace(purpose, missing=error.missing)
            return await run(task_page, service, renderer, person, offer, purpose, form.fields)
        await run(store.judgments.revise, judgment, person.id, found, request=form.one("request") or None)
        return await run(mine, offer)

    @api.post("/judgments/{judgment}/withdrawal")
    async def withdraw(judgment: str, request: Request, identity: CurrentIdentity) -> Response:
        form, person = await read_form(request), identity.worker
        offer, _ = await run(own_judgment, service, judgment, person)
        await run(store.judgments.withdraw, judgment, person.id, request=form.one("request") or None)
        return await run(mine, offer)

    def mine(offer: Offer) -> Response:
        project = store.projects.get(store.tasks.get(offer.assignment.task).project)
        return renderer.redirect(f"/projects/{project.settings.name}/mine?changed")

    return api


def own_judgment(service: Service, judgment: str, person: Person) -> tuple[Offer, Mapping[str, Any]]:
    """Return the task of a judgment as it was shown to its author, and what the judgment says.

    Raises:
        NotFound: the person has no such judgment, or its texts are erased.
    """
    entry = service.store.log.get(judgment)
    if entry.person != person.id or entry.task is None or not entry.body or "shown" not in entry.body:
        raise NotFound(f"no judgment {judgment!r} of this person")
    return service.store.leases.assign(person.id, entry.task), entry.body
