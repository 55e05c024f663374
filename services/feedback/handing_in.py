"""Handing in and skipping, with their metrics, for the API and the pages."""

from __future__ import annotations

import time
from collections.abc import Sequence

from services.feedback import auditing, holding
from services.feedback.service import Service
from services.feedback.store.judged import Ranking, Receipt, Said


async def hand_in(
    service: Service, assignment: str, person: str, said: Said, *, request: str | None
) -> Receipt:
    """Keep a judgment; it is on the disk when this returns. See `Judgments.hand_in`."""
    store, run, metrics = service.store, service.threads.run, service.metrics
    started = time.monotonic()
    found = await run(store.judgments.hand_in, assignment, person, said, request=request)
    if not found.repeated:
        metrics.hand_in_seconds.observe(time.monotonic() - started)
        metrics.judgments.labels("ranking" if isinstance(said, Ranking) else "text").inc()
        metrics.late.inc(found.late)
        if isinstance(said, Ranking):
            await run(_look, service, [found.entry])
    return found


async def hand_in_many(service: Service, person: str, judgments: Sequence[tuple[str, Said]]) -> list[Receipt]:
    """Keep several judgments, all or none; they are on the disk when this returns."""
    store, run, metrics = service.store, service.threads.run, service.metrics
    started = time.monotonic()
    found = await run(store.judgments.hand_in_many, person, judgments)
    seconds = (time.monotonic() - started) / len(judgments)
    for one, (_, said) in zip(found, judgments, strict=True):
        if not one.repeated:
            metrics.hand_in_seconds.observe(seconds)
            metrics.judgments.labels("ranking" if isinstance(said, Ranking) else "text").inc()
            metrics.late.inc(one.late)
    await run(_look, service, [one.entry for one in found if not one.repeated])
    return found


def _look(service: Service, entries: Sequence[str]) -> None:
    for entry in entries:
        auditing.look(service, entry)
        holding.look(service, entry)


async def skip(
    service: Service, assignment: str, person: str, reason: str, *, note: str, request: str | None
) -> Receipt:
    """Give a task back for good. See `Judgments.skip`."""
    found = await service.threads.run(
        service.store.judgments.skip, assignment, person, reason, note=note, request=request
    )
    if not found.repeated:
        service.metrics.skips.labels(reason).inc()
    return found
