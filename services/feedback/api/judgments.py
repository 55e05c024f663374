"""What was said, for followers: each judgment, revision and withdrawal once, after a known number."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from services.feedback.api.bodies import routes
from services.feedback.exports.rankings import demonstrations, prompts, rankings
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.judged import COUNTING, Entry, Judged
from services.feedback.store.records import RANKED_KINDS

_KINDS = (*COUNTING, "withdrawal")
_PAGE = 500


def router(service: Service) -> APIRouter:
    """Return the route."""
    api = routes("judgments")
    store, run = service.store, service.threads.run

    @api.get("/judgments", summary="Follow judgments")
    async def follow(
        identity: CurrentIdentity,
        after: Annotated[int, Query(ge=0, description="`after` of the response before; 0 at first.")] = 0,
        project: Annotated[str | None, Query(description="Only those of this project.")] = None,
        limit: Annotated[int, Query(ge=1, le=_PAGE, description="Entries to read.")] = _PAGE,
    ) -> dict[str, Any]:
        """Return what was said after an entry of the log, in the order of the log.

        A revision or a withdrawal names in `replaces` what does not count any more. `line` is absent once its
        texts are erased. A follower that keeps `after` with what it has written sees everything exactly once.
        """
        wanted = None if project is None else (await run(store.projects.get, project)).id
        found, last = await run(follow_page, service, after, limit, wanted)
        if found:
            await run(store.accesses.add, identity.name, "judgments")
        return {"judgments": found, "after": last}

    return api


def follow_page(
    service: Service, after: int, limit: int, project: str | None
) -> tuple[list[dict[str, Any]], int]:
    """Return entries after a number, and the number of the last one that was read."""
    entries = service.store.log.entries(after=after, limit=limit, kinds=_KINDS)
    judged = {one.entry.id: one for one in service.store.snapshots.of_entries([one.id for one in entries])}
    found = [
        _entry(one, judged.get(one.id))
        for one in entries
        if project is None or (one.task and service.store.tasks.get(one.task).project == project)
    ]
    return found, entries[-1].seq if entries else after


def _entry(entry: Entry, judged: Judged | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        **{"seq": entry.seq, "judgment": entry.id, "kind": entry.kind, "task": entry.task},
        **{"at": entry.at, "late": entry.late, "replaces": entry.replaces},
    }
    if judged is None or entry.kind == "withdrawal":
        return found
    body = {name: value for name, value in (entry.body or {}).items() if name != "details"}
    if judged.task.kind in RANKED_KINDS:
        lines = rankings([judged])
    else:
        lines = prompts([judged]) if judged.task.kind == "prompt" else demonstrations([judged])
    return found | {"said": body, "line": next(lines)}
