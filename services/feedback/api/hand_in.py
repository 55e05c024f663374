"""What labelers and programs say about their tasks: hand in, skip, revise and withdraw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import Field, model_validator

from services.feedback import handing_in
from services.feedback.api.bodies import (
    MAX_JUDGMENTS,
    Body,
    IdempotencyKey,
    Response,
    Seconds,
    routes,
    wire_names,
)
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.judged import Ranking, Receipt, Said, Writing

SkipReason = Literal["unclear", "not_my_field", "harmful", "personal_data", "broken", "other"]
"""Why a task is given back."""
REASONS: tuple[SkipReason, ...] = ("unclear", "not_my_field", "harmful", "personal_data", "broken", "other")
"""All reasons, in the order in which a page shows them."""


class JudgmentBody(Body):
    """What is said about a task: `ranks` for `rank` and `pair`, `text` for the other kinds."""

    ranks: dict[str, int] | None = None
    """Rank of every answer by its id: 1 for the best, equal ranks for ties."""
    ratings: dict[str, int] = Field(default_factory=dict)
    """Overall quality from 1 to 7, by id of the answer."""
    flags: dict[str, list[str]] = Field(default_factory=dict)
    """Flags by id of the answer, such as `hallucination`."""
    strength: int | None = None
    """By how much the best is better, from 1 to 4."""
    text: str | None = None
    """The text that was written."""
    base: str | None = None
    """For an edit: id of the answer that was edited."""
    note: str = ""
    """Anything to add."""
    seconds: Seconds = 0.0
    """How long the work took."""
    details: dict[str, Any] = Field(default_factory=dict)
    """More that a program records."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.ranks is None) == (self.text is None):
            raise ValueError("`ranks` or `text`, one of them")
        return self

    def said(self) -> Said:
        """Return it as the store takes it."""
        common = {"note": self.note, "seconds": self.seconds, "details": self.details}
        if self.text is not None:
            return Writing(text=self.text, base=self.base, **common)  # type: ignore[arg-type]
        flags: Mapping[str, tuple[str, ...]] = {name: tuple(found) for name, found in self.flags.items()}
        return Ranking(
            ranks=self.ranks or {},
            ratings=self.ratings,
            flags=flags,
            strength=self.strength,
            **common,  # type: ignore[arg-type]
        )


class OneOfManyBody(JudgmentBody):
    """What is said about one of several tasks."""

    assignment: str
    """Names the work on the task."""


class JudgmentsBody(Body):
    """What is said about several tasks."""

    judgments: list[OneOfManyBody] = Field(min_length=1, max_length=MAX_JUDGMENTS)
    """One for each task."""


class SkipBody(Body):
    """Why a task is given back."""

    reason: SkipReason
    """The reason."""
    note: str = ""
    """Anything to add."""


class ReceiptShown(Response):
    """What was handed in."""

    id: str
    """Names the judgment."""
    late: bool
    """Whether its place had been given to somebody else; it is kept and marked as late."""
    repeated: bool
    """Whether it had been handed in before; nothing was changed then."""


class ReceiptsShown(Response):
    """What was handed in, in the order of the request."""

    receipts: list[ReceiptShown]
    """One for each."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("work")
    store, run = service.store, service.threads.run

    @api.post("/assignments/{assignment}/judgment", response_model=ReceiptShown, summary="Hand in")
    async def hand_in(
        assignment: str, body: JudgmentBody, identity: CurrentIdentity, key: IdempotencyKey = None
    ) -> ReceiptShown:
        """Keep a judgment. It is on the disk when the response is sent."""
        with wire_names():
            return receipt(
                await handing_in.hand_in(service, assignment, identity.worker.id, body.said(), request=key)
            )

    @api.post("/judgments", response_model=ReceiptsShown, summary="Hand in several")
    async def hand_in_many(body: JudgmentsBody, identity: CurrentIdentity) -> ReceiptsShown:
        """Keep several judgments, all of them or none. Sent again, it changes nothing: each assignment is
        handed in once.
        """
        said = [(one.assignment, one.said()) for one in body.judgments]
        with wire_names():
            found = await handing_in.hand_in_many(service, identity.worker.id, said)
        return ReceiptsShown(receipts=[receipt(one) for one in found])

    @api.post("/assignments/{assignment}/skip", response_model=ReceiptShown, summary="Skip")
    async def skip(
        assignment: str, body: SkipBody, identity: CurrentIdentity, key: IdempotencyKey = None
    ) -> ReceiptShown:
        """Give a task back for good; somebody else gets it."""
        with wire_names():
            return receipt(
                await handing_in.skip(
                    service, assignment, identity.worker.id, body.reason, note=body.note, request=key
                )
            )

    @api.post("/judgments/{judgment}/revision", response_model=ReceiptShown, summary="Revise")
    async def revise(
        judgment: str, body: JudgmentBody, identity: CurrentIdentity, key: IdempotencyKey = None
    ) -> ReceiptShown:
        """Replace an own judgment by another, within the time that the project allows."""
        with wire_names():
            return receipt(
                await run(store.judgments.revise, judgment, identity.worker.id, body.said(), request=key)
            )

    @api.post("/judgments/{judgment}/withdrawal", response_model=ReceiptShown, summary="Withdraw")
    async def withdraw(judgment: str, identity: CurrentIdentity, key: IdempotencyKey = None) -> ReceiptShown:
        """Take an own judgment back, within the time that the project allows."""
        with wire_names():
            return receipt(await run(store.judgments.withdraw, judgment, identity.worker.id, request=key))

    return api


def receipt(found: Receipt) -> ReceiptShown:
    """Return a receipt as the API shows it: without the place in the log, which says how much others did."""
    return ReceiptShown(id=found.entry, late=found.late, repeated=found.repeated)
