"""Tasks for leads: import, list, change, and decisions about those that people disagree about."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from services.feedback.api.bodies import (
    MAX_ITEMS,
    Body,
    IdempotencyKey,
    Kind,
    PromptBody,
    Response,
    Why,
    routes,
    turns_of,
    wire_names,
)
from services.feedback.api.hand_in import JudgmentBody, ReceiptShown, receipt
from services.feedback.exports.lines import prompt_of
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store import Store
from services.feedback.store.records import Answer, NewAnswer, NewPrompt, NewTask, Prompt, Task


class AnswerBody(Body):
    """An answer to judge. Labelers see only its text."""

    text: str
    """The text; may be empty."""
    author: str | None = None
    """Id of the person who wrote it, to whom the task is not given."""
    run: str = ""
    """Run whose policy said it."""
    weight_versions: list[str] = Field(default_factory=list, max_length=100)
    """Weights that said it."""
    model_digest: str = ""
    """Digest of that model."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Temperature, seed and so on."""
    request_id: str = ""
    """Id of the request that it answers."""
    finish_reason: str | None = None
    """Not used: `fairlead generate` writes it."""
    num_tokens: int | None = None
    """Not used: `fairlead generate` writes it."""

    def new(self) -> NewAnswer:
        """Return it as the store takes it."""
        return NewAnswer(
            text=self.text,
            author=self.author,
            run=self.run,
            weight_version=",".join(self.weight_versions),
            model_digest=self.model_digest,
            sampling=self.sampling,
            request_id=self.request_id,
        )


class PromptFields(Body):
    """A prompt, and where it comes from."""

    prompt: PromptBody
    """Plain text, or messages that end with one to answer."""
    source: str = "import"
    """Where it comes from."""
    consent: str = ""
    """By what its author agreed, with the version of the notice."""
    user: str | None = Field(default=None, max_length=1_024)
    """The end user who wrote it. Only a keyed hash is kept, by which they can be forgotten."""
    split_group: str | None = None
    """What decides the side of a split in place of the prompt, such as a document."""
    language: str = ""
    """Code of the language."""

    def new_prompt(self, store: Store, *, state: str = "screened") -> NewPrompt:
        """Return the prompt as the store takes it."""
        return NewPrompt(
            turns=turns_of(self.prompt),
            source=self.source,
            consent=self.consent,
            subject=None if self.user is None else store.subject(self.user),
            split_group=self.split_group,
            language=self.language,
            state=state,
        )


class TaskBody(PromptFields):
    """A task, as a line that `fairlead generate` writes, with more keys if they are needed."""

    responses: list[AnswerBody | str] = Field(default_factory=list, max_length=100)
    """The answers to rank or to edit."""
    kind: Kind = "rank"
    """What is to be done."""
    overlap: int | None = None
    """Judgments wanted; by default the project decides."""
    priority: int = 0
    """Higher is given out first."""
    why: Why = "random"
    """Why it was chosen. Only tasks drawn at random measure anything."""
    round: int = 0
    """Round of an iteration."""
    gold: dict[str, Any] | None = None
    """Accepted judgment and explanation, of a task with a known answer."""

    def new(self, store: Store) -> NewTask:
        """Return it as the store takes it."""
        return NewTask(
            kind=self.kind,
            prompt=self.new_prompt(store),
            answers=tuple(
                NewAnswer(text=one) if isinstance(one, str) else one.new() for one in self.responses
            ),
            overlap=self.overlap,
            priority=self.priority,
            why=self.why,
            round=self.round,
            gold=self.gold,
        )


class TasksRequest(Body):
    """Tasks to add."""

    project: str | None = Field(default=None, max_length=64)
    """Name of the project; that of the configuration by default."""
    tasks: list[TaskBody] = Field(min_length=1, max_length=MAX_ITEMS)
    """In the order in which they are given out."""


class AddedShown(Response):
    """A task or prompt after an import."""

    id: str
    """Its id."""
    new: bool
    """False if the same content was there before."""


class TasksAdded(Response):
    """The tasks, in the order of the request."""

    tasks: list[AddedShown]
    """One for each."""


class TaskChange(Body):
    """What changes; absent fields stay."""

    priority: int | None = None
    """Higher is given out first."""
    overlap: int | None = None
    """Judgments wanted."""
    state: Literal["open", "withdrawn"] | None = None
    """A withdrawn task is given to nobody."""
    reviewed: Literal[True] | None = None
    """A reviewer has looked at why it was skipped."""

    def changes(self) -> dict[str, object]:
        """Return the new values."""
        given = self.model_dump(exclude_none=True, exclude={"reviewed"})
        return given | ({"review": None} if self.reviewed else {})


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("tasks")
    store, run = service.store, service.threads.run

    @api.post("/tasks", response_model=TasksAdded, summary="Add tasks")
    async def add_tasks(body: TasksRequest) -> TasksAdded:
        """Add tasks with their prompts and answers. The same content again is the same task."""
        project = await run(store.projects.get, body.project or service.section.project.name)
        new = [task.new(store) for task in body.tasks]
        with wire_names():
            found = await run(store.tasks.add, project.id, new)
        return TasksAdded(tasks=[AddedShown(id=one.id, new=one.new) for one in found])

    @api.get("/tasks", summary="List tasks")
    async def list_tasks(
        project: str | None = None,
        after: int = 0,
        state: Literal["open", "closed", "withdrawn"] | None = None,
        review: bool = False,
    ) -> dict[str, Any]:
        """Return tasks in the order of their numbers; `next` continues after them, and is null at the end."""
        known = await run(store.projects.get, project or service.section.project.name)
        found = await run(store.tasks.page, known.id, after=after, state=state, review=review)
        return {"tasks": [_summary(task) for task in found], "next": found[-1].number if found else None}

    @api.get("/tasks/{task}", summary="Show a task")
    async def show_task(task: str, identity: CurrentIdentity) -> dict[str, Any]:
        """Return a task with its texts, where they come from, and the entries of the log about it."""
        found = await run(whole_task, service, task)
        await run(store.accesses.add, identity.name, "task", task)
        return found

    @api.patch("/tasks/{task}", summary="Change a task")
    async def change_task(task: str, body: TaskChange) -> dict[str, Any]:
        """Change priority, overlap or state of a task."""
        return _summary(await run(store.tasks.change, task, body.changes()))

    @api.post("/tasks/{task}/adjudication", response_model=ReceiptShown, summary="Adjudicate")
    async def adjudicate(
        task: str, body: JudgmentBody, identity: CurrentIdentity, key: IdempotencyKey = None
    ) -> ReceiptShown:
        """Decide about a task; what people said stays as it is."""
        with wire_names():
            return receipt(
                await run(store.judgments.adjudicate, task, identity.worker.id, body.said(), request=key)
            )

    return api


def _summary(task: Task) -> dict[str, Any]:
    names = ("id", "number", "kind", "overlap", "priority", "why", "round", "gold", "state", "review", "made")
    return {name: getattr(task, name) for name in names} | {"answers": len(task.answers)}


def whole_task(service: Service, task: str) -> dict[str, Any]:
    """Return a task with all that is known about it."""
    store = service.store
    known = store.tasks.get(task)
    prompt: Prompt | None = store.prompts.get(known.prompt) if known.prompt else None
    entries: list[dict[str, Any]] = [
        {"id": one.id, "kind": one.kind, "person": one.person, "at": one.at, "late": one.late}
        | {"replaces": one.replaces, "body": one.body}
        for one in store.log.of_task(task)
    ]
    return {
        **_summary(known),
        "prompt": None if prompt is None else prompt_of(prompt.turns),
        "prompt_id": known.prompt,
        "responses": [_answer(one) for one in store.tasks.answers(task)],
        "entries": entries,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    names = ("id", "text", "author", "run", "weight_version", "model_digest", "sampling", "request_id")
    return {name: getattr(answer, name) for name in names}
