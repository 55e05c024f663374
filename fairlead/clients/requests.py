"""What every client does before a request leaves: values that no message can hold are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fairlead.errors import InvalidInput


@contextmanager
def building(field: str) -> Iterator[None]:
    """Turns protobuf's refusals (a number beyond its type, a text that is no Unicode) into InvalidInput."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise InvalidInput(field, got=str(error), allowed="values that fit the message") from error
