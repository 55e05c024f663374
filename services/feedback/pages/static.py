"""The style sheet, the script and the icon of the pages."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import Response

from fairlead.errors import NotFound
from services.feedback.service import Service

if TYPE_CHECKING:
    from services.feedback.pages.page import Renderer

_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "rank.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@cache
def content(name: str) -> bytes:
    """Return a file."""
    return resources.files("services.feedback").joinpath("static", name).read_bytes()


@cache
def digest(name: str) -> str:
    """Return the start of the digest of a file: its address changes with its content."""
    return hashlib.sha256(content(name)).hexdigest()[:16]


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the route."""
    api = APIRouter(include_in_schema=False)

    @api.get("/static/{name}")
    async def file(name: str) -> Response:
        if name not in _TYPES:
            raise NotFound(f"no file {name!r}; there are: {', '.join(_TYPES)}")
        headers = {
            "cache-control": "public, max-age=3600",
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        }
        return Response(content(name), headers=headers, media_type=_TYPES[name])

    return api
