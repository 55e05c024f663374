"""What auditors see: the log without its texts, whether it verifies, who looked at what, what was erased."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fairlead.errors import CorruptData
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.page import Renderer, routes
from services.feedback.service import Service
from services.feedback.store.log import Verified

_ROWS = 50


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the routes."""
    api = routes()
    store, run = service.store, service.threads.run

    @api.get("/audit")
    async def show(request: Request, identity: CurrentIdentity, before: int = 0) -> Response:
        def build_page() -> Response:
            head = store.log.head()
            last = min(before or head.seq, head.seq)
            people = {one.id: one.handle or "forgotten" for one in store.people.all()}
            verified: Verified | None = None
            problem = ""
            if "verify" in request.query_params:
                try:
                    verified = store.log.verify()
                except CorruptData as error:
                    problem = str(error)
            return renderer.page(
                "lead/audit",
                identity.worker,
                head=head,
                entries=store.log.entries(after=max(0, last - _ROWS), limit=min(_ROWS, last))[::-1]
                if last
                else [],
                before=last - _ROWS if last > _ROWS else None,
                accesses=store.accesses.page()[-_ROWS:][::-1],
                erasures=store.erasures.all()[::-1],
                people=people,
                verified=verified,
                problem=problem,
            )

        return await run(build_page)

    return api
