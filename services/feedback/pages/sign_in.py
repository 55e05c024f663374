"""Signing in and out: by an invitation, or on the machine itself by a handle."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import FairleadError, InvalidInput
from services.feedback.api.sessions import person_of_handle
from services.feedback.pages.form import read_form
from services.feedback.pages.page import Renderer, routes
from services.feedback.service import Service
from services.feedback.store.people import SESSION_SECONDS
from services.feedback.store.records import Person

_SHOWN = 100
"""Characters of a refused name that the page repeats."""
_LOCAL = re.compile(r"/(?![/\\])[\x21-\x7e]*")
"""A path of this service. Browsers drop tabs and line breaks, and would then read a name of a server."""


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    people, run = service.store.people, service.threads.run

    async def started(person: Person, back: str) -> Response:
        token = await run(people.start_session, person.id)
        found = renderer.redirect(back)
        found.headers["set-cookie"] = service.cookie.set(token, max_age_seconds=int(SESSION_SECONDS))
        return found

    @api.get("/sign-in")
    async def form() -> Response:
        return renderer.sign_in("Sign in", back="/")

    @api.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        sent = await read_form(request)
        handle, back = sent.one("handle").strip(), local_path(sent.one("back"))
        try:
            return await started(await person_of_handle(service, handle, "labeler"), back)
        except FairleadError as error:
            handle = handle if len(handle) <= _SHOWN else f"{handle[:_SHOWN]}…"
            message = (
                f"{handle!r} cannot be a name here: use letters, digits, spaces and _ . @ + -"
                if isinstance(error, InvalidInput)
                else str(error)
            )
            status = 400 if isinstance(error, InvalidInput) else 403
            return renderer.sign_in("Sign in", back=back, handle=handle, message=message, status=status)

    @api.get("/invitation")
    async def invitation(token: str = "") -> Response:
        # Opening the link uses nothing up: programs that preview links open them too. The token is in the
        # query, which the access log leaves out.
        return renderer.sign_in("Welcome", back="/", invitation=token)

    @api.post("/invitation")
    async def accept(request: Request) -> Response:
        sent = await read_form(request)
        return await started(await run(people.accept, sent.one("invitation")), "/")

    @api.get("/about")
    async def about() -> Response:
        return renderer.page("about")

    @api.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        token = service.cookie.read(request.scope["headers"])
        if token is not None:
            await run(people.end_session, token)
        found = renderer.redirect("/sign-in")
        found.headers["set-cookie"] = service.cookie.delete()
        return found

    return api


def local_path(text: str) -> str:
    """Return a path of this service to go to, or the start page if it leads elsewhere."""
    return text if _LOCAL.fullmatch(text) else "/"
