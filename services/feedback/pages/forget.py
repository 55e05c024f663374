"""Forgetting for leads: find somebody or a prompt, see what would go, confirm, and see what is marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import InvalidInput
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import read_form
from services.feedback.pages.page import Renderer, routes
from services.feedback.pages.task_page import Text, turns_of
from services.feedback.service import Service
from services.feedback.store.artifacts import FORGETTABLE, Artifact
from services.feedback.store.erasures import Erasure
from services.feedback.store.records import Person, Prompt

_ROWS = 20
_BEGIN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found."""

    people: Sequence[Person]
    """Whose name contains it."""
    prompts: Sequence[tuple[str, str]]
    """Ids and beginnings of prompts that contain it."""
    subject: str
    """Keyed hash of the end user of exactly this name; empty if there are no prompts of theirs."""
    count: int
    """How many there are."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing."""
        return not (self.people or self.prompts or self.count)


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    def preview(kind: str, name: str, identity: CurrentIdentity, message: str = "") -> Response:
        if kind not in FORGETTABLE:
            raise InvalidInput("kind", got=kind, allowed=" or ".join(FORGETTABLE))
        reach, lineage = store.lineage.forward(kind, name)
        person = store.people.get(name) if kind == "person" else None
        shown: Sequence[Text] = turns_of(store.prompts.get(name).turns) if kind == "prompt" else ()
        if shown:
            store.accesses.add(identity.name, "read", name)
        return renderer.page(
            "lead/forget_confirm",
            identity.worker,
            400 if message else 200,
            kind=kind,
            name=name,
            whose=person.handle or "somebody forgotten" if person else kind,
            reach=reach,
            lineage=lineage,
            turns=shown,
            gone=person is not None and person.state == "forgotten",
            message=message,
        )

    @api.get("/forget")
    async def search(request: Request, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            text = request.query_params.get("find", "").strip()
            done = request.query_params.get("done", "")
            erasure = store.erasures.get(done) if done else None
            return renderer.page(
                "lead/forget",
                identity.worker,
                text=text,
                found=_find(service, text) if text else None,
                done=erasure,
                marked=_marked(service, erasure),
                erasures=store.erasures.all()[::-1][:_ROWS],
            )

        return await run(build_page)

    @api.get("/forget/{kind}/{name}")
    async def show(kind: str, name: str, identity: CurrentIdentity) -> Response:
        return await run(preview, kind, name, identity)

    @api.post("/forget/{kind}/{name}")
    async def erase(kind: str, name: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        if name == identity.worker.id:
            raise InvalidInput("person", got=name, allowed="somebody else: you cannot forget yourself here")
        if form.one("sure") != "yes":
            message = "Nothing was erased yet: confirm that it is to be erased for good."
            return await run(preview, kind, name, identity, message)
        proof = await run(store.erasures.forget, kind, name, actor=identity.name)
        return renderer.redirect(f"/forget?done={proof.id}")

    return api


def _find(service: Service, text: str) -> Found:
    store = service.store
    people = [one for one in store.people.all() if one.handle and text.lower() in one.handle.lower()]
    prompts = store.prompts.containing(text, limit=_ROWS)
    subject = store.subject(text)
    return Found(
        people[:_ROWS], [(one.id, _begin(one)) for one in prompts], subject, store.prompts.count(subject)
    )


def _marked(service: Service, erasure: Erasure | None) -> list[Artifact]:
    """Return what was marked by an erasure, or everything that is marked."""
    found = service.store.artifacts.all(tainted=True)
    return found if erasure is None else [one for one in found if one.id in erasure.artifacts]


def _begin(prompt: Prompt) -> str:
    text = " ".join(prompt.turns[-1].content.split()) if prompt.turns else ""
    return text if len(text) <= _BEGIN_CHARACTERS else f"{text[:_BEGIN_CHARACTERS]}…"
