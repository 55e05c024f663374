"""People for leads: add, invite, change role and state, end sessions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import InvalidInput
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import read_form
from services.feedback.pages.page import Renderer, routes
from services.feedback.service import Service
from services.feedback.store.people import INVITATION_SECONDS
from services.feedback.store.records import COHORTS, ROLES, NewPerson, Person


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    people, run = service.store.people, service.threads.run

    def page(
        identity: CurrentIdentity, invited: Person | None = None, token: str = "", message: str = ""
    ) -> Response:
        return renderer.page(
            "lead/people",
            identity.worker,
            400 if message else 200,
            people=people.all(),
            roles=ROLES,
            cohorts=COHORTS,
            invited=invited,
            invitation=service.link(f"/invitation?token={token}") if token else "",
            valid_seconds=INVITATION_SECONDS,
            message=message,
        )

    @api.get("/people")
    async def list_all(identity: CurrentIdentity) -> Response:
        return await run(page, identity)

    @api.post("/people")
    async def add(request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        new = NewPerson(
            kind="labeler",
            handle=form.one("handle").strip(),
            role=form.one("role", "labeler"),
            cohort=form.one("cohort", "train"),
            hourly_cost=form.number("hourly_cost"),
        )
        try:
            person = await run(people.add, new)
        except InvalidInput as error:
            return await run(page, identity, message=str(error))
        # Its link is shown once, in this response.
        return await run(page, identity, person, await run(people.invite, person.id))

    @api.post("/people/{person}/invitation")
    async def invite(person: str, identity: CurrentIdentity) -> Response:
        token = await run(people.invite, person)
        return await run(page, identity, await run(people.get, person), token)

    @api.post("/people/{person}")
    async def change(person: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        changes = {name: value for name in ("role", "state", "cohort") if (value := form.one(name))}
        if person == identity.worker.id and changes.get("role", "lead") != "lead":
            raise InvalidInput("role", got=changes["role"], allowed="lead: you cannot take it from yourself")
        if person == identity.worker.id and changes.get("state") == "paused":
            raise InvalidInput("state", got="paused", allowed="active: you cannot pause yourself")
        await run(people.change, person, changes)
        return renderer.redirect("/people")

    @api.post("/people/{person}/sessions")
    async def end_sessions(person: str, identity: CurrentIdentity) -> Response:
        await run(people.end_sessions, person)
        return renderer.redirect("/people")

    return api
