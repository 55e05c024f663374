"""Collected prompts for reviewers: accept, mask or reject each before a labeler sees it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import InvalidInput
from fairlead.types import Message
from services.feedback.collection.screening import parts
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import Form, read_form
from services.feedback.pages.page import Renderer, routes
from services.feedback.pages.task_page import turns_of
from services.feedback.service import Service
from services.feedback.store.records import Prompt

_ROWS = 20
_DECISIONS = {"accept": "screened", "mask": "screened", "reject": "rejected"}


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    @api.get("/prompts")
    async def list_new(request: Request, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            found = store.prompts.page(state="new")
            if found:
                store.accesses.add(identity.name, "prompts")
            return renderer.page(
                "lead/prompts",
                identity.worker,
                rows=[
                    (one, turns_of(one.turns), [parts(turn.content) for turn in one.turns])
                    for one in found[:_ROWS]
                ],
                more=max(0, len(found) - _ROWS),
                decided="decided" in request.query_params,
            )

        return await run(build_page)

    @api.post("/prompts/{prompt}")
    async def decide(prompt: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        decision = form.one("decision")
        if decision not in _DECISIONS:
            raise InvalidInput("decision", got=decision, allowed=", ".join(_DECISIONS))
        known = await run(store.prompts.get, prompt)
        masked = _masked(form, known) if decision == "mask" else None
        await run(
            store.collected.decide,
            prompt,
            _DECISIONS[decision],
            screener=identity.worker.id,
            masked=masked,
        )
        return renderer.redirect("/prompts?decided")

    return api


def _masked(form: Form, prompt: Prompt) -> list[Message]:
    """Return the turns of a prompt with the texts of the form."""
    return [
        Message(turn.role, form.one(f"turn-{number}", turn.content))
        for number, turn in enumerate(prompt.turns, start=1)
    ]
