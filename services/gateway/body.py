"""JSON bodies: read strictly, by one parser, before FastAPI holds them against a model.

The parser refuses NaN, text that is no Unicode, and nesting beyond 200 levels; the size was limited before.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute

from fairlead.errors import InvalidInput
from services.gateway.failures import TooLarge


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - JSON may be anything
    """The value that a body holds.

    Raises:
        InvalidInput: it is no JSON.
    """
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInput("body", got=f"{len(data)} bytes: {error}", allowed="JSON") from None


def decompressed(data: bytes, encoding: str, *, limit: int) -> bytes:
    """A body as it was before it was compressed.

    Raises:
        InvalidInput: it is not compressed as it says, or in a way that is not read here.
        TooLarge: there would be more of it than the limit; no more than that is made.
    """
    if encoding not in ("gzip", "deflate"):
        raise InvalidInput("Content-Encoding", got=encoding[:80], allowed="gzip, deflate or none")
    # 32 + 15: a header of gzip or zlib, whichever is there.
    stream = zlib.decompressobj(wbits=47)
    try:
        found = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidInput("body", got=f"{len(data)} bytes: {error}", allowed=encoding) from None
    if len(found) > limit:
        raise TooLarge("body", got=f"more than {limit} bytes within {encoding}", allowed=f"at most {limit}")
    if not stream.eof:
        raise InvalidInput("body", got=f"{len(data)} bytes without their end", allowed=f"whole {encoding}")
    return found


class _JsonRequest(Request):
    async def json(self) -> Any:  # noqa: ANN401 - as in the class above
        return parse_json(await self.body())


class JsonRoute(APIRoute):
    """A route whose body is JSON, whether the caller says so or says nothing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with our way of reading."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "")
            if self.body_field is not None and kind and "json" not in kind.lower():
                raise InvalidInput("Content-Type", got=kind, allowed="application/json")
            scope = request.scope
            if not kind:
                # FastAPI would take it for a text.
                headers = [*scope["headers"], (b"content-type", b"application/json")]
                scope = {**scope, "headers": headers}
            return await handler(_JsonRequest(scope, request.receive))

        return handle
