"""The tasks of a project for leads: import a file, change priorities, withdraw."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from fairlead.errors import InvalidInput
from services.feedback.api.bodies import MAX_ITEMS, wire_names
from services.feedback.api.tasks import TaskBody
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import Form, read_form
from services.feedback.pages.mine import excerpt
from services.feedback.pages.page import Renderer, routes
from services.feedback.service import Service
from services.feedback.store.records import NewTask, Task
from services.runtime.http.failures import invalid_input

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
        new = await run(_tasks_of, service, form)
        added = 0
        for start in range(0, len(new), MAX_ITEMS):
            with wire_names():
                found = await run(store.tasks.add, known.id, new[start : start + MAX_ITEMS])
            added += sum(one.new for one in found)
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


def _tasks_of(service: Service, form: Form) -> Sequence[NewTask]:
    """Return the tasks of a file of JSON lines, or of lines in a field."""
    data = form.files.get("file") or form.one("lines").encode()
    found = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"line {number}", got=str(error), allowed="an object in JSON") from None
        if isinstance(value, dict) and form.one("kind"):
            value.setdefault("kind", form.one("kind"))
        try:
            found.append(TaskBody.model_validate(value).new(service))
        except ValidationError as error:
            wrong = invalid_input(error.errors(include_url=False), value)
            raise InvalidInput(
                f"line {number}: {wrong.where}", got=wrong.got, allowed=wrong.allowed
            ) from None
    if not found:
        raise InvalidInput(
            "file", got="no lines", allowed='lines such as {"prompt": "…", "responses": ["…", "…"]}'
        )
    return found


def _begin(service: Service, task: Task) -> str:
    return excerpt(service.store.prompts.get(task.prompt).turns[-1].content) if task.prompt else ""
