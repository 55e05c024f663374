"""Tasks on which labelers disagree, and those that were skipped often, for a reviewer to decide."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import Fields, read_form
from services.feedback.pages.mine import excerpt, order_of
from services.feedback.pages.page import Renderer, routes
from services.feedback.pages.said import (
    FLAGS,
    QUALITIES,
    SKIP_REASONS,
    STRENGTHS,
    UNACCEPTABLE,
    Incomplete,
    fields,
    layout_of,
    said,
)
from services.feedback.pages.task_page import Filled, text_of, turns_of
from services.feedback.reckoning import SHARED, disagreements, of_project
from services.feedback.service import Service
from services.feedback.store.judged import COUNTING, Entry
from services.feedback.store.records import RANKED_KINDS, Assignment, Offer, Task

_ROWS = 50


@dataclass(frozen=True, slots=True)
class Opinion:
    """What somebody said about a task."""

    name: str
    """Who."""
    said: str
    """A ranking in letters, or a text."""
    note: str
    """What they add."""
    entry: Entry
    """The entry."""


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    @api.get("/projects/{project}/disagreements")
    async def list_all(project: str, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            known = store.projects.get(project)
            found = [one for one in disagreements(of_project(service, known.id, SHARED)) if one.opposed]
            rows = [(one, _begin(service, store.tasks.get(one.task))) for one in found[:_ROWS]]
            review = [(task, _begin(service, task)) for task in store.tasks.page(known.id, review=True)]
            return renderer.page(
                "lead/disagreements",
                identity.worker,
                project=known,
                rows=rows,
                total=len(found),
                review=review[:_ROWS],
                reasons=SKIP_REASONS,
            )

        return await run(build_page)

    @api.get("/tasks/{task}")
    async def show(task: str, request: Request, identity: CurrentIdentity) -> Response:
        return await run(decision_page, service, renderer, identity, task)

    @api.post("/tasks/{task}")
    async def decide(task: str, request: Request, identity: CurrentIdentity) -> Response:
        form, person = await read_form(request), identity.worker
        offer = await run(offer_of, service, task)
        try:
            found = said(form, offer)
        except Incomplete as error:
            missing = list(error.missing)
            return await run(decision_page, service, renderer, identity, task, form.fields, missing)
        await run(store.judgments.adjudicate, task, person.id, found, request=form.one("request") or None)
        return renderer.redirect(f"/tasks/{task}")

    @api.post("/tasks/{task}/reviewed")
    async def reviewed(task: str, identity: CurrentIdentity) -> Response:
        known = await run(store.tasks.change, task, {"review": None})
        project = await run(store.projects.get, known.project)
        return renderer.redirect(f"/projects/{project.settings.name}/disagreements")

    return api


def decision_page(
    service: Service,
    renderer: Renderer,
    identity: CurrentIdentity,
    task: str,
    filled: Fields | None = None,
    missing: list[tuple[str, str]] | None = None,
) -> Response:
    """Return a task with everything that was said about it, and the form of a decision."""
    store = service.store
    offer = offer_of(service, task)
    known = store.tasks.get(task)
    entries = store.log.of_task(task)
    replaced = {one.replaces for one in entries}
    newest = [one for one in entries if one.id not in replaced and one.body]
    decision = next((one for one in newest if one.kind == "adjudication"), None)
    if filled is None:
        filled = fields(decision.body or {}, offer) if decision is not None else {}
    store.accesses.add(identity.name, "task", task)
    return renderer.page(
        "lead/task",
        identity.worker,
        400 if missing else 200,
        project=store.projects.get(known.project),
        task=known,
        layout=layout_of(offer),
        turns=turns_of(offer.turns),
        answers=[text_of(text, chr(ord("A") + place)) for place, (_, text) in enumerate(offer.answers)],
        opinions=[_opinion(service, one, known) for one in newest if one.kind in COUNTING],
        skips=[(_name(service, one), (one.body or {})) for one in newest if one.kind == "skip"],
        decision=_opinion(service, decision, known) if decision is not None else None,
        filled=Filled(filled),
        missing=missing or [],
        ranked=known.kind in RANKED_KINDS,
        request_key=secrets.token_urlsafe(16),
        reasons=SKIP_REASONS,
        flags=FLAGS,
        qualities=QUALITIES,
        strengths=STRENGTHS,
        unacceptable=UNACCEPTABLE,
    )


def offer_of(service: Service, task: str) -> Offer:
    """Return a task as a reviewer sees it: the answers in the order of import."""
    store = service.store
    known = store.tasks.get(task)
    turns = store.prompts.get(known.prompt or "").turns
    texts = tuple((answer.id, answer.text) for answer in store.tasks.answers(task))
    nobody = Assignment("", task, "", known.answers, 0, 0.0, 0.0, "leased", None)
    return Offer(assignment=nobody, kind=known.kind, turns=turns, answers=texts, draft=None)


def _begin(service: Service, task: Task) -> str:
    return excerpt(service.store.prompts.get(task.prompt).turns[-1].content) if task.prompt else ""


def _name(service: Service, entry: Entry) -> str:
    return service.store.people.get(entry.person or "").handle or "forgotten"


def _opinion(service: Service, entry: Entry, task: Task) -> Opinion:
    body = entry.body or {}
    text = str(body["text"]) if "text" in body else order_of(body["ranks"], task.answers)
    return Opinion(_name(service, entry), text, str(body.get("note", "")), entry)
