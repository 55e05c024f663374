"""The guidelines of a project: read them, see what changed, note that they were read; leads write them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import NotFound
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.differences import differences
from services.feedback.pages.form import read_form
from services.feedback.pages.markdown import rendered
from services.feedback.pages.page import Renderer, routes
from services.feedback.pages.quiz import questions
from services.feedback.service import Service


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    @api.get("/projects/{project}/guidelines")
    async def read(
        project: str, identity: CurrentIdentity, version: int | None = None, since: int | None = None
    ) -> Response:
        def build_page() -> Response:
            known = store.projects.get(project)
            versions = {one.version: one for one in store.projects.guidelines(known.id)}
            shown = versions.get(version or max(versions, default=0))
            if shown is None and (version or versions):
                raise NotFound(f"the guidelines have no version {version}")
            before = versions.get(since or 0)
            parts = differences(before.text, shown.text) if before and shown else None
            readings = store.projects.readings(known.id, identity.worker.id)
            return renderer.page(
                "guidelines",
                identity.worker,
                project=known,
                versions=sorted(versions.values(), key=lambda one: -one.version),
                shown=shown,
                html=rendered(shown.text) if shown else "",
                before=before,
                parts=parts,
                read={one.version: one.at for one in readings},
                quizzed={one.version: one.quiz for one in readings if one.quiz is not None},
                has_quiz=bool(questions(service, known.id, identity.worker.id)),
            )

        return await run(build_page)

    @api.post("/projects/{project}/guidelines/{version}/reading")
    async def note_reading(project: str, version: int, identity: CurrentIdentity) -> Response:
        known = await run(store.projects.get, project)
        await run(store.projects.note_reading, known.id, version, identity.worker.id)
        return renderer.redirect("/")

    @api.post("/projects/{project}/guidelines")
    async def write(project: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        known = await run(store.projects.get, project)
        await run(store.projects.add_guideline, known.id, form.one("text"))
        return renderer.redirect(f"/projects/{known.settings.name}/guidelines")

    return api
