"""Signing in and out: with an invitation, or with a handle where no sign-in is needed."""

from __future__ import annotations

from typing import Literal, Self

from fastapi import APIRouter, Request
from fastapi import Response as HttpResponse
from pydantic import Field, model_validator

from fairlead.errors import NotFound, PermissionDenied
from services.feedback.api.bodies import Body, Response, routes
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.people import SESSION_SECONDS
from services.feedback.store.records import NewPerson, Person


class SignIn(Body):
    """Who signs in."""

    invitation: str | None = Field(default=None, max_length=200)
    """The token of an invitation, which works once."""
    handle: str | None = Field(default=None, max_length=64)
    """On the machine itself, without API keys: a name to work under. A new one is added."""
    kind: Literal["labeler", "simulated", "judge"] = "labeler"
    """What a new handle is: a person, or a program. A person may do everything there; a program labels."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.invitation is None) == (self.handle is None):
            raise ValueError("`invitation` or `handle`, one of them")
        return self


class Me(Response):
    """A person, as they see themselves."""

    id: str
    """Id of the person."""
    handle: str
    """The name they have here."""
    kind: str
    """`labeler`, or what kind of program."""
    role: str
    """`labeler`, `reviewer`, `lead` or `auditor`."""


def me(person: Person) -> Me:
    """Return a person as they see themselves: neither their cohort nor their pseudonym."""
    return Me(id=person.id, handle=person.handle or "", kind=person.kind, role=person.role)


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("sessions")
    people, run = service.store.people, service.threads.run

    @api.post("/sessions", response_model=Me, status_code=201, summary="Sign in")
    async def sign_in(body: SignIn, response: HttpResponse) -> Me:
        """Start a session; the response sets its cookie."""
        if body.invitation is not None:
            person = await run(people.accept, body.invitation)
        else:
            assert body.handle is not None
            person = await person_of_handle(service, body.handle, body.kind)
        token = await run(people.start_session, person.id)
        response.headers["set-cookie"] = service.cookie.set(token, max_age_seconds=int(SESSION_SECONDS))
        return me(person)

    @api.delete("/sessions/current", status_code=204, summary="Sign out")
    async def sign_out(request: Request, response: HttpResponse) -> None:
        """End the session of the cookie, if there is one, and delete the cookie."""
        token = service.cookie.read(request.scope["headers"])
        if token is not None:
            await run(people.end_session, token)
        response.headers["set-cookie"] = service.cookie.delete()

    @api.get("/me", response_model=Me, summary="Who I am")
    async def who(identity: CurrentIdentity) -> Me:
        """Return the person who is signed in."""
        return me(identity.worker)

    return api


async def person_of_handle(service: Service, handle: str, kind: str) -> Person:
    """Return the person of a handle, added if there is none.

    Raises:
        PermissionDenied: people have to be invited.
    """
    if not service.is_open:
        raise PermissionDenied("this server needs an invitation: ask the lead of the project for one")
    people, run = service.store.people, service.threads.run
    try:
        return await run(people.by_handle, handle)
    except NotFound:
        # People on the machine itself may do everything there.
        role = "lead" if kind == "labeler" else "labeler"
        return await run(people.add, NewPerson(kind=kind, handle=handle, role=role, active=True))
