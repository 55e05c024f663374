"""Read bodies: receive and decompress them within a limit, check their size, parse and validate their JSON.

The parser refuses NaN, invalid Unicode, and nesting deeper than 200 levels. A large body is checked, parsed
and validated in a thread, so that other requests continue.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from fairlead.errors import InvalidInput
from services.runtime.http.failures import TooLarge, invalid_input
from services.runtime.http.json_limits import BodyLimits, check_json
from services.runtime.large import in_thread_if_large

_STEP_BYTES = 1 << 20
_KEY = "fairlead.body"


def parse_json(data: bytes | bytearray) -> Any:  # noqa: ANN401 - JSON may be anything
    """Return the value that a body holds.

    Raises:
        InvalidInput: the body is not valid JSON.
    """
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInput("body", got=f"{len(data)} bytes: {error}", allowed="valid JSON") from None


async def read_json(data: bytes | bytearray, limits: BodyLimits) -> Any:  # noqa: ANN401 - JSON may be anything
    """Return the value that a body holds, after the check of its size.

    Raises:
        InvalidInput: the body exceeds a limit or is not valid JSON.
    """
    return await in_thread_if_large(lambda: _checked(data, limits), len(data))


def _checked(data: bytes | bytearray, limits: BodyLimits) -> Any:  # noqa: ANN401 - JSON may be anything
    check_json(data, limits)
    return parse_json(data)


def store_body(scope: MutableMapping[str, Any], body: bytearray) -> None:
    """Store the body of a request in its ASGI scope, where the routes find it."""
    scope[_KEY] = body


def body_of(scope: MutableMapping[str, Any]) -> bytearray:
    """Return the body that `store_body` stored. It must not be changed."""
    found = scope[_KEY]
    assert isinstance(found, bytearray)
    return found


class BodyBuffer:
    """Collects a body as it is received, and decompresses it on the way."""

    def __init__(self, encoding: str, *, num_bytes: int, limit: int) -> None:
        """
        Args:
            encoding: value of Content-Encoding.
            num_bytes: value of Content-Length; 0 if it is not known.
            limit: maximum size in bytes, as received and after decompression.

        Raises:
            InvalidInput: the encoding is not supported.
        """
        if encoding not in ("identity", "gzip", "deflate"):
            raise InvalidInput("Content-Encoding", got=encoding, allowed="gzip, deflate or identity")
        self._encoding = encoding
        self._limit = limit
        self._received = 0
        # Of its final size from the start, if that is known: a buffer that grows takes more memory.
        self._found = bytearray(num_bytes if encoding == "identity" else 0)
        self._size = 0
        # 32 + 15: detect whether the header is that of gzip or zlib.
        self._stream = None if encoding == "identity" else zlib.decompressobj(wbits=47)

    async def add(self, part: bytes) -> None:
        """Append a part.

        Raises:
            TooLarge: the body exceeds the limit.
            InvalidInput: it is not in its encoding.
        """
        self._received += len(part)
        if self._received > self._limit:
            raise too_large(self._received, self._limit)
        if self._stream is None:
            self._found[self._size : self._size + len(part)] = part
            self._size += len(part)
        elif part:
            await asyncio.to_thread(self._decompress, part)

    def finish(self) -> bytearray:
        """Return the whole body.

        Raises:
            InvalidInput: the compressed body is truncated.
        """
        if self._stream is None:
            # A body without Content-Length may be shorter than one that was announced beside it.
            del self._found[self._size :]
        if self._stream is not None and not self._stream.eof:
            got = f"{self._received} bytes, truncated"
            raise InvalidInput("body", got=got, allowed=f"a complete {self._encoding} stream")
        return self._found

    def _decompress(self, part: bytes) -> None:
        assert self._stream is not None
        left = part
        while left:
            if self._stream.eof:
                # Another stream would be left unread. Many short ones would cost much more than their bytes.
                got = f"bytes after the end of the {self._encoding} stream"
                raise InvalidInput("body", got=got, allowed="one compressed stream")
            step = min(_STEP_BYTES, self._limit + 1 - len(self._found))
            try:
                self._found += self._stream.decompress(left, step)
            except zlib.error as error:
                got = f"{self._received} bytes: {error}"
                raise InvalidInput("body", got=got, allowed=f"valid {self._encoding} data") from None
            if len(self._found) > self._limit:
                raise TooLarge(
                    "body",
                    got=f"more than {self._limit} bytes after decompression ({self._encoding})",
                    allowed=f"at most {self._limit} bytes",
                )
            left = self._stream.unconsumed_tail or self._stream.unused_data


def too_large(size: int, limit: int) -> TooLarge:
    """Return the error for a body that is larger than the limit."""
    return TooLarge("body", got=f"{size} bytes or more", allowed=f"at most {limit} bytes")


def json_route(limits: Callable[[], BodyLimits]) -> type[APIRoute]:
    """Return a class of routes with a JSON body. A missing Content-Type is accepted as JSON.

    Args:
        limits: returns what the body of a request may contain.
    """

    class JsonRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """Return the handler, with this module's parser in place of the default one."""
            handler = super().get_route_handler()
            declared = self.body_field.field_info.annotation if self.body_field is not None else None
            model = declared if isinstance(declared, type) and issubclass(declared, BaseModel) else None

            async def handle(request: Request) -> Response:
                kind = request.headers.get("content-type", "")
                if self.body_field is not None and kind and "json" not in kind.lower():
                    raise InvalidInput("Content-Type", got=kind, allowed="application/json")
                scope = request.scope
                if not kind:
                    # Without this header FastAPI would read the body as text.
                    headers = [*scope["headers"], (b"content-type", b"application/json")]
                    scope = {**scope, "headers": headers}
                return await handler(_JsonRequest(scope, request.receive, model, limits()))

            return handle

    return JsonRoute


class _JsonRequest(Request):
    """A request whose JSON is a validated model, which FastAPI then passes on as it is."""

    def __init__(self, scope: Any, receive: Any, model: type[BaseModel] | None, limits: BodyLimits) -> None:  # noqa: ANN401
        super().__init__(scope, receive)
        self._model = model
        self._limits = limits

    async def body(self) -> bytes:
        """Return the body as it was received, without a copy."""
        return body_of(self.scope)  # type: ignore[return-value]  # FastAPI asks only whether it is empty

    async def json(self) -> Any:  # noqa: ANN401 - as in the base class
        data = body_of(self.scope)
        return await in_thread_if_large(lambda: self._validated(data), len(data))

    def _validated(self, data: bytearray) -> Any:  # noqa: ANN401 - without a model, any JSON
        found = _checked(data, self._limits)
        if self._model is None:
            return found
        try:
            return self._model.model_validate(found)
        except ValidationError as error:
            raise invalid_input(error.errors(include_url=False), found) from None
