"""Gauges of the service's state, read from the store every few seconds."""

from __future__ import annotations

import asyncio
import logging
import time

from fairlead.errors import FairleadError
from fairlead.log import LogSummary
from services.feedback.service import Service

logger = logging.getLogger(__name__)

_SECONDS = 5.0
_EXPIRY_SECONDS = 3_600.0
"""Time between two deletions of prompts that nobody has screened."""
_FAILURES = LogSummary(logger)


async def keep_gauges(service: Service) -> None:
    """Set the gauges until cancelled. Unfinished erasures are tried again each time, and collected prompts
    that nobody has screened in time are deleted.
    """
    expiry = time.monotonic()
    keep_seconds = service.section.collect.keep_days * 86_400
    while True:
        try:
            await service.threads.run(update_gauges, service)
            if time.monotonic() >= expiry:
                expiry = time.monotonic() + _EXPIRY_SECONDS
                if expired := await service.threads.run(service.store.collected.expire, keep_seconds):
                    logger.info("deleted %d collected prompts that nobody has screened", expired)
        except FairleadError as error:
            _FAILURES.add("cannot read the figures of the store", str(error))
        await asyncio.sleep(_SECONDS)


def update_gauges(service: Service) -> None:
    """Set the gauges once."""
    store, metrics = service.store, service.metrics
    found = [store.figures.progress(project.id) for project in store.projects.all()]
    for state in ("open", "closed", "withdrawn"):
        metrics.tasks.labels(state).set(sum(one.tasks.get(state, 0) for one in found))
    metrics.leases_open.set(sum(one.leases for one in found))
    metrics.leases_expired.set(sum(one.expired for one in found))
    store.erasures.scrub()
    metrics.erasures_open.set(sum(one.scrubbed is None for one in store.erasures.all()))
