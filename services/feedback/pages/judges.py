"""Model judges for leads: each beside people on the tasks drawn for it, and whether it is paused."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from fairlead.judgments.judges import ENOUGH_TASKS, MARGIN
from services.feedback import auditing
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.page import Renderer, routes
from services.feedback.service import Service


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the route."""
    api = routes()

    @api.get("/projects/{project}/judges")
    async def show(project: str, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            known = service.store.projects.get(project)
            return renderer.page(
                "lead/judges",
                identity.worker,
                project=known,
                judges=auditing.judges(service, known.id),
                enough=ENOUGH_TASKS,
                margin=MARGIN,
                last=auditing.LAST_AUDITED,
            )

        return await service.threads.run(build_page)

    return api
