"""Read JSON bodies strictly, with one parser, before FastAPI validates them against a model.

The parser refuses NaN, invalid Unicode, and nesting deeper than 200 levels. The edge has limited the size.
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
    """Return the value that a body holds.

    Raises:
        InvalidInput: the body is not valid JSON.
    """
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInput("body", got=f"{len(data)} bytes: {error}", allowed="valid JSON") from None


def decompressed(data: bytes, encoding: str, *, limit: int) -> bytes:
    """Return a compressed body decompressed.

    Args:
        data: the body as received.
        encoding: the value of Content-Encoding.
        limit: maximum size after decompression, in bytes.

    Raises:
        InvalidInput: the encoding is not supported, or the body is not in this encoding.
        TooLarge: the result would exceed the limit; decompression stops there.
    """
    if encoding not in ("gzip", "deflate"):
        raise InvalidInput("Content-Encoding", got=encoding[:80], allowed="gzip, deflate or identity")
    # 32 + 15: detect whether the header is that of gzip or zlib.
    stream = zlib.decompressobj(wbits=47)
    try:
        found = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidInput(
            "body", got=f"{len(data)} bytes: {error}", allowed=f"valid {encoding} data"
        ) from None
    if len(found) > limit:
        raise TooLarge(
            "body",
            got=f"more than {limit} bytes after decompression ({encoding})",
            allowed=f"at most {limit} bytes",
        )
    if not stream.eof:
        raise InvalidInput(
            "body", got=f"{len(data)} bytes, truncated", allowed=f"a complete {encoding} stream"
        )
    return found


class _JsonRequest(Request):
    async def json(self) -> Any:  # noqa: ANN401 - as in the base class
        return parse_json(await self.body())


class JsonRoute(APIRoute):
    """A route with a JSON body. A missing Content-Type is accepted as JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with this module's parser in place of the default one."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "")
            if self.body_field is not None and kind and "json" not in kind.lower():
                raise InvalidInput("Content-Type", got=kind, allowed="application/json")
            scope = request.scope
            if not kind:
                # Without this header FastAPI would read the body as text.
                headers = [*scope["headers"], (b"content-type", b"application/json")]
                scope = {**scope, "headers": headers}
            return await handler(_JsonRequest(scope, request.receive))

        return handle
