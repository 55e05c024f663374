"""Name the mistake in a request by the caller's own fields.

A dialect translates a request into one for a service, which names its own fields when it refuses it. This
module translates the error back. Knows nothing about dialects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fairlead.errors import InvalidInput, RemoteInvalidInput

Places = Mapping[str, str]
"""Field of a service → field of the caller. A key applies to the fields inside it too; the longest that fits
counts. `[]` in a value is replaced by the index of the error, as in `items[].response`."""


@contextmanager
def caller_fields(places: Places | Callable[[int | None], Places]) -> Iterator[None]:
    """Raise the InvalidInput of the block with the caller's field.

    Args:
        places: the fields, or a function that returns them for the index of the error.
    """
    try:
        yield
    except InvalidInput as error:
        renamed = in_caller_fields(error, places(error.index) if callable(places) else places)
        if renamed is error:
            raise
        raise renamed from error


def in_caller_fields(error: InvalidInput, places: Places) -> InvalidInput:
    """Return an error with the caller's field; the same one if `places` does not have its field."""
    parts = error.field.split(".")
    prefixes = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    place = next((places[prefix] for prefix in prefixes if prefix in places), None)
    if place is None:
        return error
    where = place.replace("[]", "" if error.index is None else f"[{error.index}]")
    if isinstance(error, RemoteInvalidInput):
        return RemoteInvalidInput(f"{where}: got {error.got}, allowed: {error.allowed}")
    return InvalidInput(where, got=error.got, allowed=error.allowed)
