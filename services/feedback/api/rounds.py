"""Rounds: runs say how far they are, and leads see what each round has and waits for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import Field

from services.feedback.api.bodies import Body, routes
from services.feedback.service import Service

Project = Annotated[str | None, Field(max_length=64)]


class RoundBody(Body):
    """What changes; absent fields stay."""

    project: Project = None
    """Name of the project; that of the configuration by default."""
    step: str | None = None
    """Step that has begun, such as `judgments`."""
    state: Literal["working", "stopped", "done"] | None = None
    """State of the round."""
    message: str | None = None
    """Why it has stopped."""
    wanted: int | None = Field(default=None, ge=0)
    """Judgments, without those of held-out people, that it waits for."""
    gate: dict[str, Any] | None = None
    """What the gate found."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("rounds")
    store, run = service.store, service.threads.run

    @api.put("/rounds/{name}/{number}", summary="Report a round")
    async def report(name: str, number: Annotated[int, Path(ge=0)], body: RoundBody) -> dict[str, Any]:
        """Keep how far a run is with a round, for the page *Rounds*."""
        project = await run(store.projects.get, body.project or service.section.project.name)
        changes = body.model_dump(exclude_none=True, exclude={"project"})
        return asdict(await run(store.rounds.report, project.id, name, number, changes))

    @api.get("/rounds", summary="List rounds")
    async def list_all(project: str | None = None) -> dict[str, Any]:
        """Return what runs have reported, and how many tasks and rankings each round has."""
        known = await run(store.projects.get, project or service.section.project.name)
        return {
            "rounds": [asdict(one) for one in await run(store.rounds.reports, known.id)],
            "counts": [asdict(one) for one in await run(store.rounds.counts, known.id)],
        }

    return api
