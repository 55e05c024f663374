"""The fields of a form that a page sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email import policy
from email.parser import BytesParser

from fastapi import Request

from fairlead.errors import InvalidInput
from services.runtime.http.body import body_of
from services.runtime.http.forms import form_of
from services.runtime.large import in_thread_if_large

_MAX_FIELDS = 100
"""Of a form with a file."""

Fields = Mapping[str, Sequence[str]]
"""Values by the name of the field."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a form sent."""

    fields: Fields = field(default_factory=dict)
    """Values by the name of the field."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Contents of files by the name of the field."""

    def one(self, name: str, default: str = "") -> str:
        """Return the first value of a field."""
        return next(iter(self.fields.get(name, ())), default)

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of a field."""
        return tuple(self.fields.get(name, ()))

    def whole(self, name: str) -> int | None:
        """Return a whole number; None if the field is absent or blank.

        Raises:
            InvalidInput: it is something else.
        """
        text = self.one(name).strip()
        if not text:
            return None
        if not (text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) < 10):
            raise InvalidInput(name, got=text, allowed="a whole number")
        return int(text)

    def number(self, name: str) -> float | None:
        """Return a number; None if the field is absent or blank.

        Raises:
            InvalidInput: it is something else.
        """
        text = self.one(name).strip()
        try:
            return float(text) if text else None
        except ValueError:
            raise InvalidInput(name, got=text, allowed="a number") from None


async def read_form(request: Request) -> Form:
    """Return the form in the body of a request; one with a file has several parts.

    Raises:
        InvalidInput: the body is no form.
    """
    kind = request.headers.get("content-type", "")
    data = body_of(request.scope)
    if kind.partition(";")[0].strip().lower() == "multipart/form-data":
        return await in_thread_if_large(lambda: _multipart(kind, bytes(data)), len(data))
    return await in_thread_if_large(lambda: Form(_grouped(form_of(request.scope))), len(data))


def _multipart(kind: str, data: bytes) -> Form:
    head = f"content-type: {kind}\r\n\r\n".encode("latin-1", "replace")
    found = BytesParser(policy=policy.HTTP).parsebytes(head + data)
    pairs: list[tuple[str, str]] = []
    files: dict[str, bytes] = {}
    parts = list(found.iter_parts()) if found.is_multipart() else []
    if not parts or len(parts) > _MAX_FIELDS:
        allowed = f"a form of 1 to {_MAX_FIELDS} fields"
        raise InvalidInput("body", got=f"{len(data)} bytes with {len(parts)} fields", allowed=allowed)
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            raise InvalidInput("body", got="a part without a name", allowed="fields with names")
        if part.get_filename() is not None:
            files[name] = content
        else:
            # Browsers send line breaks of texts as two characters.
            pairs.append((name, content.decode("utf-8", "replace").replace("\r\n", "\n")))
    return Form(_grouped(pairs), files)


def _grouped(pairs: Sequence[tuple[str, str]]) -> Fields:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found
