"""Snapshots for leads: make one, and download its files."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import InvalidInput
from services.feedback.exports.formats import FORMATS
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import read_form
from services.feedback.pages.page import Renderer, routes
from services.feedback.service import Service
from services.feedback.store.judged import Filter
from services.feedback.store.records import COHORTS, PERSON_KINDS, RANKED_KINDS, WRITTEN_KINDS

_RANKED_FORMATS = ("rankings", "pairs", "argilla", "label-studio")


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    def page(project: str, identity: CurrentIdentity, message: str = "") -> Response:
        known = store.projects.get(project)
        snapshots = [one for one in store.snapshots.all() if one.filter.project == known.id]
        return renderer.page(
            "lead/exports",
            identity.worker,
            400 if message else 200,
            project=known,
            snapshots=[(one, _formats(one.filter)) for one in reversed(snapshots)],
            cohorts=COHORTS,
            kinds=PERSON_KINDS,
            message=message,
        )

    @api.get("/projects/{project}/exports")
    async def list_all(project: str, identity: CurrentIdentity) -> Response:
        return await run(page, project, identity)

    @api.post("/projects/{project}/exports")
    async def make(project: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        known = await run(store.projects.get, project)
        wanted = Filter(
            project=known.id,
            kinds=RANKED_KINDS if form.one("what") == "rankings" else WRITTEN_KINDS,
            cohorts=form.all("cohort"),
            people=form.all("kind"),
            late=bool(form.one("late")),
        )
        try:
            await run(store.snapshots.make, wanted)
        except InvalidInput as error:
            nothing = "No judgment matches this choice, so there is nothing to keep."
            message = nothing if error.where == "filter" else str(error)
            return await run(page, project, identity, message)
        service.metrics.snapshots.inc()
        return renderer.redirect(f"/projects/{known.settings.name}/exports")

    return api


def _formats(wanted: Filter) -> list[str]:
    """Return the formats in which a snapshot is not empty."""
    if set(wanted.kinds) <= set(RANKED_KINDS):
        return [name for name in FORMATS if name in _RANKED_FORMATS]
    return [name for name in FORMATS if name in ("demonstrations", "pairs", "prompts")]
