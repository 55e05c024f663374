"""Handing in and skipping, with their metrics, for the API and the pages."""

from __future__ import annotations

import time

from services.feedback import auditing
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
            await run(auditing.look, service, found.entry)
    return found


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
