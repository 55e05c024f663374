"""What auditors read: proofs of erasures, the log without its texts, and who has looked at what."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from services.feedback.api.bodies import routes
from services.feedback.service import Service
from services.feedback.store.judged import Entry

_PAGE = 500


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("audit")
    store, run = service.store, service.threads.run

    @api.get("/forget", summary="List what was forgotten")
    async def erasures() -> dict[str, Any]:
        """Return all erasures, the oldest first; none says what was erased."""
        return {"erasures": [asdict(one) for one in await run(store.erasures.all)]}

    @api.get("/forget/{erasure}", summary="Proof of an erasure")
    async def erasure(erasure: str) -> dict[str, Any]:
        """Return an erasure; `scrubbed` is null while its texts may still be in the files."""
        return asdict(await run(store.erasures.get, erasure))

    @api.get("/log", summary="Read the log")
    async def log(
        after: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=_PAGE)] = _PAGE
    ) -> dict[str, Any]:
        """Return entries of the log after a number, without what they say."""
        found = await run(store.log.entries, after=after, limit=limit)
        return {"entries": [_entry(one) for one in found], "after": found[-1].seq if found else after}

    @api.get("/log/verification", summary="Verify the log")
    async def verification() -> dict[str, Any]:
        """Check every entry, content and snapshot against its digest. Keep `head`, a proof."""
        return asdict(await run(store.log.verify))

    @api.get("/accesses", summary="Who has looked at what")
    async def accesses(after: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        """Return looks at texts and exports after a number."""
        return {"accesses": [asdict(one) for one in await run(store.accesses.page, after=after)]}

    return api


def _entry(entry: Entry) -> dict[str, Any]:
    names = ("seq", "id", "kind", "task", "person", "at", "late", "replaces")
    return {name: getattr(entry, name) for name in names} | {"erased": entry.body is None}
