"""A quiz about the guidelines: questions with known answers, and after it what is accepted and why."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.feedback.gold import Gold, gold_of
from services.feedback.holding import why_not
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.form import Fields, read_form
from services.feedback.pages.mine import order_of
from services.feedback.pages.page import Renderer, letter, routes
from services.feedback.pages.task_page import Filled, Text, text_of, turns_of
from services.feedback.service import Service

QUESTIONS = 5
"""Of a quiz."""
ENOUGH = 0.75
"""Share of right answers that a quiz asks for, where the project asks for no other."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question as one person sees it."""

    number: int
    """From 1."""
    turns: Sequence[Text]
    """The prompt."""
    shown: tuple[str, ...]
    """Ids of the answers in this person's order."""
    answers: Sequence[Text]
    """Their texts."""
    gold: Gold
    """What is accepted."""

    @property
    def accepted(self) -> str:
        """What is accepted, in letters."""
        return order_of(dict(self.gold.ranks), self.shown)


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    def page(project: str, identity: CurrentIdentity, sent: Fields | None = None) -> Response:
        known = store.projects.get(project)
        asked = questions(service, known.id, identity.worker.id)
        right: dict[int, bool] = {}
        if sent is not None and asked:
            right = {one.number: _is_right(one, sent) for one in asked}
            versions = store.projects.guidelines(known.id)
            if versions:
                share = sum(right.values()) / len(right)
                store.projects.note_reading(known.id, versions[-1].version, identity.worker.id, quiz=share)
                if share >= max(ENOUGH, known.settings.least_gold):
                    store.holds.release(known.id, identity.worker.id)
        return renderer.page(
            "quiz",
            identity.worker,
            project=known,
            questions=asked,
            filled=Filled(sent or {}),
            right=right,
            enough=max(ENOUGH, known.settings.least_gold),
            held=why_not(service, known, identity.worker),
        )

    @api.get("/projects/{project}/quiz")
    async def ask(project: str, identity: CurrentIdentity) -> Response:
        return await run(page, project, identity)

    @api.post("/projects/{project}/quiz")
    async def answer(project: str, request: Request, identity: CurrentIdentity) -> Response:
        form = await read_form(request)
        return await run(page, project, identity, form.fields)

    return api


def questions(service: Service, project: str, person: str) -> list[Question]:
    """Return the questions of a person's quiz, always the same."""
    store = service.store
    known = [
        (task, gold)
        for task in store.tasks.page(project, why="gold")
        if task.state != "withdrawn" and task.prompt and (gold := gold_of(task))
    ]
    chosen = random.Random(f"quiz {person}").sample(known, min(QUESTIONS, len(known)))
    found = []
    for number, (task, gold) in enumerate(chosen, start=1):
        answers = {one.id: one.text for one in store.tasks.answers(task.id)}
        shown = random.Random(f"{person} {task.id}").sample(task.answers, len(task.answers))
        texts = [text_of(answers[one], letter(place)) for place, one in enumerate(shown, start=1)]
        turns = turns_of(store.prompts.get(task.prompt or "").turns)
        found.append(Question(number, turns, tuple(shown), texts, gold))
    return found


def _is_right(question: Question, sent: Fields) -> bool:
    """Return whether the places of a form agree with what is accepted; without a place they do not."""
    ranks: dict[str, float] = {}
    for place, answer in enumerate(question.shown, start=1):
        value = next(iter(sent.get(f"place-{question.number}-{place}", ())), "")
        if not (value.isascii() and value.isdigit() and len(value) < 3):
            return False
        ranks[answer] = int(value)
    return question.gold.accepts(ranks)
