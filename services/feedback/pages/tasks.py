"""The tasks of a project for leads: import a file, change priorities, withdraw."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.feedback.api.bodies import wire_names
from services.feedback.api.task_lines import add_all, tasks_of
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import read_form
from services.feedback.pages.mine import excerpt
from services.feedback.pages.page import Renderer, routes
from services.feedback.service import Service
from services.feedback.store.records import Task

_ROWS = 50
_STATES = ("open", "closed", "withdrawn")


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    @api.get("/projects/{project}/tasks")
    async def list_all(
        project: str, request: Request, identity: CurrentIdentity, after: int = 0, state: str = ""
    ) -> Response:
        def build_page() -> Response:
            known = store.projects.get(project)
            wanted = state if state in _STATES else None
            found = store.tasks.page(known.id, after=after, state=wanted)
            added = request.query_params.get("added", "")
            return renderer.page(
                "lead/tasks",
                identity.worker,
                project=known,
                rows=[(task, _begin(service, task)) for task in found[:_ROWS]],
                next_after=found[_ROWS - 1].number if len(found) > _ROWS else None,
                state=wanted or "",
                states=_STATES,
                added=added if added.isdigit() else "",
            )

        return await run(build_page)

    @api.post("/projects/{project}/tasks")
    async def add(project: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        known = await run(store.projects.get, project)
        data = form.files.get("file") or form.one("lines").encode("utf-8", "surrogatepass")
        new = await run(lambda: tasks_of(data, service.store, kind=form.one("kind")))
        with wire_names():
            added = await run(add_all, store, known.id, new)
        return renderer.redirect(f"/projects/{known.settings.name}/tasks?added={added}")

    @api.post("/tasks/{task}/change")
    async def change(task: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        changes: dict[str, object] = {}
        if (priority := form.whole("priority")) is not None:
            changes["priority"] = priority
        if state := form.one("state"):
            changes["state"] = state
        known = await run(store.tasks.change, task, changes)
        project = await run(store.projects.get, known.project)
        return renderer.redirect(f"/projects/{project.settings.name}/tasks?after={known.number - 1}")

    return api


def _begin(service: Service, task: Task) -> str:
    return excerpt(service.store.prompts.get(task.prompt).turns[-1].content) if task.prompt else ""
