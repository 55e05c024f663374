"""Snapshots for leads: make one, and download its files."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import InvalidInput
from services.feedback.api.snapshots import AboutBody, zipped_folder
from services.feedback.exports.formats import FORMATS
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import read_form
from services.feedback.pages.page import HEADERS, Renderer, routes
from services.feedback.service import Service
from services.feedback.store.judged import Filter
from services.feedback.store.records import COHORTS, PERSON_KINDS, RANKED_KINDS, WRITTEN_KINDS

_KINDS = {"rankings": RANKED_KINDS, "texts": WRITTEN_KINDS, "all": (*RANKED_KINDS, "write", "edit")}
"""Kinds of tasks by what a snapshot is of."""
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
            kinds=_KINDS.get(form.one("what"), RANKED_KINDS),
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

    @api.post("/projects/{project}/exports/{digest}")
    async def data_set(project: str, digest: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        languages = (
            re.split(r"[\s,]+", form.one("languages").strip()) if form.one("languages").strip() else ["en"]
        )
        about = AboutBody(
            title=form.one("title").strip() or "Judgments of people",
            license=form.one("license").strip(),
            languages=languages,
            consent=form.one("consent"),
            withdrawal=form.one("withdrawal"),
        )
        content = await run(zipped_folder, service, digest, about)
        await run(store.accesses.add, identity.name, "export", digest)
        headers = {**HEADERS, "content-disposition": f'attachment; filename="{digest[:16]}.zip"'}
        return Response(content, media_type="application/zip", headers=headers)

    return api


def _formats(wanted: Filter) -> list[str]:
    """Return the formats in which a snapshot is not empty."""
    if set(wanted.kinds) <= set(RANKED_KINDS):
        return [name for name in FORMATS if name in _RANKED_FORMATS]
    if set(wanted.kinds) & set(RANKED_KINDS):
        return list(FORMATS)
    return [name for name in FORMATS if name in ("demonstrations", "pairs", "prompts")]
