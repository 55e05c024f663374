"""The fields of a form that a page sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from fastapi import Request
from python_multipart import parse_form
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field as FormField
from python_multipart.multipart import File as FormFile

from fairlead.errors import InvalidInput
from services.runtime.http.body import body_of
from services.runtime.http.forms import form_of
from services.runtime.large import in_thread_if_large

_MAX_FIELDS = 2_000

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
    pairs: list[tuple[str, str]] = []
    files: dict[str, bytes] = {}

    def add_field(found: FormField) -> None:
        if len(pairs) >= _MAX_FIELDS:
            raise InvalidInput("body", got=f"more than {_MAX_FIELDS} fields", allowed="fewer")
        name, value = found.field_name or b"", found.value or b""
        pairs.append((name.decode("utf-8", "replace"), value.decode("utf-8", "replace")))

    def add_file(found: FormFile) -> None:
        found.file_object.seek(0)
        files[(found.field_name or b"").decode("utf-8", "replace")] = found.file_object.read()
        found.close()

    headers = {"Content-Type": kind.encode(), "Content-Length": str(len(data)).encode()}
    try:
        parse_form(headers, BytesIO(data), add_field, add_file)
    except (FormParserError, ValueError) as error:
        raise InvalidInput("body", got=str(error), allowed="a form") from None
    # Browsers send line breaks of texts as two characters.
    return Form(_grouped([(name, value.replace("\r\n", "\n")) for name, value in pairs]), files)


def _grouped(pairs: Sequence[tuple[str, str]]) -> Fields:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found
