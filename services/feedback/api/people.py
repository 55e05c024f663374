"""People and programs, for leads: add, invite, change, and end their sessions."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from fairlead.errors import InvalidInput
from services.feedback.api.bodies import Body, Response, routes
from services.feedback.identity import subject_of
from services.feedback.service import Service
from services.feedback.store.people import INVITATION_SECONDS
from services.feedback.store.records import NewPerson, Person

_Role = Literal["labeler", "reviewer", "lead", "auditor"]
_Cohort = Literal["train", "heldout"]


class PersonBody(Body):
    """A person or program to add."""

    handle: str
    """Name by which leads know them; nobody else has it."""
    kind: Literal["labeler", "judge", "simulated", "import"] = "labeler"
    """`labeler` for people; the others are programs."""
    role: _Role = "labeler"
    """What they may do."""
    cohort: _Cohort = "train"
    """Whether their rankings may be trained on, or only measure. Fixed by the first judgment."""
    hourly_cost: float | None = None
    """Cost of an hour of their work."""
    key: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """For a program: id of the API key that belongs to it."""


class PersonChange(Body):
    """What changes; absent fields stay."""

    role: _Role | None = None
    """What they may do."""
    state: Literal["active", "paused"] | None = None
    """Pausing ends all sessions; nothing that was handed in is lost."""
    cohort: _Cohort | None = None
    """Only before the first judgment."""
    hourly_cost: float | None = None
    """Cost of an hour of their work."""


class PersonShown(Response):
    """A person, as leads see them."""

    id: str
    """Their id."""
    handle: str | None
    """Their name; null once forgotten."""
    kind: str
    """`labeler`, or what kind of program."""
    role: str
    """What they may do."""
    state: str
    """`invited`, `active`, `paused` or `forgotten`."""
    cohort: str
    """`train` or `heldout`."""
    hourly_cost: float | None
    """Cost of an hour of their work."""
    made: float
    """When they were added, in seconds since 1970."""


class Invitation(Response):
    """How an invited person signs in for the first time."""

    link: str
    """To open in a browser. It works once and is shown only now."""
    invitation: str
    """Its token, for `POST /v1/feedback/sessions`."""
    seconds: float
    """How long it may be used."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("people")
    people, run = service.store.people, service.threads.run

    @api.get("/people", summary="List people")
    async def list_all() -> dict[str, Any]:
        """Return everybody, in the order in which they were added."""
        return {"people": [_shown(one).model_dump() for one in await run(people.all)]}

    @api.post("/people", response_model=PersonShown, status_code=201, summary="Add a person")
    async def add(body: PersonBody) -> PersonShown:
        """Add a person, who then needs an invitation, or a program, which needs an API key."""
        if body.key is not None and body.kind == "labeler":
            raise InvalidInput("key", got=body.key, allowed="only for a program: people sign in")
        new = NewPerson(
            kind=body.kind,
            handle=body.handle,
            role=body.role,
            cohort=body.cohort,
            subject=None if body.key is None else subject_of(body.key),
            hourly_cost=body.hourly_cost,
        )
        return _shown(await run(people.add, new))

    @api.patch("/people/{person}", response_model=PersonShown, summary="Change a person")
    async def change(person: str, body: PersonChange) -> PersonShown:
        """Change role, state, cohort or cost."""
        return _shown(await run(people.change, person, body.model_dump(exclude_none=True)))

    @api.post("/people/{person}/invitation", response_model=Invitation, summary="Invite a person")
    async def invite(person: str) -> Invitation:
        """Return a link that signs a person in, once; older ones are void."""
        token = await run(people.invite, person)
        link = service.link(f"/invitation?token={token}")
        return Invitation(link=link, invitation=token, seconds=INVITATION_SECONDS)

    @api.delete("/people/{person}/sessions", status_code=204, summary="End all sessions of a person")
    async def end_sessions(person: str) -> None:
        """Sign a person out everywhere, at once."""
        await run(people.end_sessions, person)

    return api


def _shown(person: Person) -> PersonShown:
    return PersonShown(**{name: getattr(person, name) for name in PersonShown.model_fields})
