"""Home: the projects of a person, what they did, what is new in the guidelines, and how they agree."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.judgments.labelers import LAST_TASKS, LabelerFigures
from services.feedback.holding import why_not
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.page import Renderer, routes
from services.feedback.pages.recent import Recent
from services.feedback.reckoning import agreement_by_labeler
from services.feedback.service import Service
from services.feedback.store.figures import OwnCounts
from services.feedback.store.records import Guideline, Project

DAY_SECONDS = 86_400.0
_AGREEMENT_SECONDS = 60.0
"""For how long a figure of agreement is shown before it is computed again."""


@dataclass(frozen=True, slots=True)
class ProjectAtHome:
    """A project as a labeler sees it."""

    project: Project
    """The project."""
    own: OwnCounts
    """What the person has handed in."""
    wanted: int
    """Judgments that the project still wants."""
    guideline: Guideline | None
    """The newest guidelines."""
    read: int
    """The version that the person has read last; 0 if none."""
    agreement: LabelerFigures | None
    """How the person agrees with the others, after enough shared tasks."""
    held: str
    """Why the person gets no task; empty if they get some."""


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the route."""
    api = routes()
    agreements = Recent[str, Mapping[str, LabelerFigures]](_AGREEMENT_SECONDS)

    @api.get("/")
    async def home(request: Request, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            person = identity.worker
            store = service.store
            found = [
                at_home(service, project, person.id, agreements)
                for project in store.projects.all()
                if project.state == "active" or person.role != "labeler"
            ]
            nothing = request.query_params.get("nothing")
            return renderer.page("home", person, projects=found, nothing=nothing, enough=LAST_TASKS)

        return await service.threads.run(build_page)

    return api


def at_home(
    service: Service,
    project: Project,
    person: str,
    agreements: Recent[str, Mapping[str, LabelerFigures]],
) -> ProjectAtHome:
    """Return a project as a labeler sees it."""
    store = service.store
    own = own_counts(service, project.id, person)
    guidelines = store.projects.guidelines(project.id)
    readings = store.projects.readings(project.id, person)
    agreement = None
    if own.done >= LAST_TASKS:
        by_labeler = agreements.get(project.id, lambda: agreement_by_labeler(service, project.id))
        figures = by_labeler.get(person)
        agreement = figures if figures is not None and figures.tasks >= LAST_TASKS else None
    return ProjectAtHome(
        project=project,
        own=own,
        wanted=store.figures.progress(project.id).wanted,
        guideline=guidelines[-1] if guidelines else None,
        read=readings[-1].version if readings else 0,
        agreement=agreement,
        held=why_not(service, project, service.store.people.get(person)),
    )


def own_counts(service: Service, project: str, person: str) -> OwnCounts:
    """Return what a person has handed in, in all and since midnight in UTC."""
    midnight = time.time() // DAY_SECONDS * DAY_SECONDS
    return service.store.figures.own(project, person, since=midnight)
