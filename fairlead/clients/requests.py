"""What every client does before a request leaves: values that no message can hold are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fairlead.errors import InvalidInput
from fairlead.rpc.credentials import Metadata
from fairlead.rpc.status import MAX_REQUEST_TOKENS


@contextmanager
def building(field: str) -> Iterator[None]:
    """Turns protobuf's refusals (a number beyond its type, a text that is no Unicode) into InvalidInput."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise InvalidInput(field, got=str(error), allowed="values that fit the message") from error


def limits(max_request_tokens: int | None) -> Metadata:
    """The metadata that has a service refuse what holds more tokens."""
    return () if max_request_tokens is None else ((MAX_REQUEST_TOKENS, str(max_request_tokens)),)
