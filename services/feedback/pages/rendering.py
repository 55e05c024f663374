"""Pages from templates, with the headers that keep a page harmless."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fairlead.errors import NotFound
from services.feedback.pages.markdown import rendered
from services.feedback.store.records import Person

_FOLDER = Path(__file__).parent
HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every page: no script, style or frame of others, and nothing is kept by caches."""
_STATIC = {"page.css": "text/css; charset=utf-8"}


class Pages:
    """The templates."""

    def __init__(self, *, root_path: str) -> None:
        """
        Args:
            root_path: prefix of a proxy, which links need.
        """
        self._root_path = root_path
        self._environment = Environment(
            loader=FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["markdown"] = rendered
        self._environment.globals["root"] = root_path

    def page(
        self, name: str, *, person: Person | None = None, status: int = 200, **values: object
    ) -> HTMLResponse:
        """Return a page.

        Args:
            name: of the template, without `.j2`.
            person: who is signed in, for the head of the page.
            status: HTTP status.
            **values: what the template shows.
        """
        text = self._environment.get_template(f"{name}.j2").render(person=person, status=status, **values)
        # A lone surrogate has no UTF-8.
        return HTMLResponse(text.encode("utf-8", "replace"), status, dict(HEADERS))

    def redirect(self, path: str) -> Response:
        """Return the response that sends a browser to another page after a form."""
        return RedirectResponse(self._root_path + path, 303, {"cache-control": "no-store"})

    def static_files(self) -> APIRouter:
        """Return the route of styles and scripts."""
        routes = APIRouter(include_in_schema=False)

        @routes.get("/static/{name}")
        async def static(name: str) -> FileResponse:
            if name not in _STATIC:
                raise NotFound(f"no file {name!r}")
            headers = {"x-content-type-options": "nosniff", "cache-control": "max-age=300"}
            return FileResponse(_FOLDER / "static" / name, media_type=_STATIC[name], headers=headers)

        return routes
