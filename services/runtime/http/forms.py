"""Forms that a page sends without a script: fields of `application/x-www-form-urlencoded`."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from fairlead.errors import InvalidInput
from services.runtime.http.body import body_of

_MEDIA_TYPE = "application/x-www-form-urlencoded"
_MAX_FIELDS = 1_000


def form_of(scope: MutableMapping[str, Any]) -> list[tuple[str, str]]:
    """Return the fields of the form in the body of a request, in order; a name may occur more than once.

    Line ends are a single character; browsers send two.

    Raises:
        InvalidInput: the body is no such form, has too many fields, or is not in UTF-8.
    """
    kind = (
        dict(scope["headers"]).get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    )
    if kind != _MEDIA_TYPE:
        raise InvalidInput("Content-Type", got=kind, allowed=_MEDIA_TYPE)
    try:
        text = body_of(scope).decode("ascii")
        found = parse_qsl(
            text,
            keep_blank_values=True,
            strict_parsing=bool(text),
            max_num_fields=_MAX_FIELDS,
            errors="strict",
        )
    except ValueError:
        raise InvalidInput(
            "body", got=f"{len(body_of(scope))} bytes", allowed=f"a form of at most {_MAX_FIELDS} fields"
        ) from None
    return [(name, value.replace("\r\n", "\n")) for name, value in found]
