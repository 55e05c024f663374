"""Signing in and out: by the link of an invitation, or with a handle on the machine itself."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import FairleadError
from services.feedback.api.sessions import person_of_handle
from services.feedback.pages.rendering import Pages
from services.feedback.service import Service
from services.feedback.store.people import SESSION_SECONDS
from services.feedback.store.records import Person
from services.runtime.http.forms import form_of


def router(service: Service, pages: Pages) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(include_in_schema=False)
    people, run = service.store.people, service.threads.run

    async def signed_in(person: Person) -> Response:
        token = await run(people.start_session, person.id)
        response = pages.redirect("/")
        response.headers["set-cookie"] = service.cookie.set(token, max_age_seconds=int(SESSION_SECONDS))
        return response

    @routes.get("/sign-in")
    async def sign_in() -> Response:
        return pages.page("sign_in", is_open=service.is_open, invitation=None, error=None)

    @routes.post("/sign-in")
    async def sign_in_with_handle(request: Request) -> Response:
        handle = dict(form_of(request.scope)).get("handle", "").strip()
        try:
            return await signed_in(await person_of_handle(service, handle, "labeler"))
        except FairleadError as error:
            return pages.page(
                "sign_in", status=400, is_open=service.is_open, invitation=None, error=str(error)
            )

    @routes.get("/invitation/{token}")
    async def invitation(token: str) -> Response:
        # The link itself uses nothing up: previews of mails and chats open it too.
        return pages.page("sign_in", is_open=False, invitation=token, error=None)

    @routes.post("/invitation/{token}")
    async def accept(token: str) -> Response:
        try:
            return await signed_in(await run(people.accept, token))
        except FairleadError as error:
            return pages.page("sign_in", status=401, is_open=False, invitation=None, error=str(error))

    @routes.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        token = service.cookie.read(request.scope["headers"])
        if token is not None:
            await run(people.end_session, token)
        response = pages.redirect("/sign-in")
        response.headers["set-cookie"] = service.cookie.delete()
        return response

    return routes
