"""Forms without files: what is read of them, and what is refused."""

from __future__ import annotations

import pytest

from fairlead.errors import InvalidInput
from services.runtime.http.body import store_body
from services.runtime.http.forms import form_of

FORM = "application/x-www-form-urlencoded"


def scope_of(kind: str, body: bytes) -> dict[str, object]:
    scope: dict[str, object] = {"headers": [(b"content-type", kind.encode())]}
    store_body(scope, bytearray(body))
    return scope


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        (FORM, b"a=%ff"),
        (FORM, b"a&b"),
        (FORM, b"&".join(b"a=1" for _ in range(1_001))),
        (FORM, "a=é".encode()),
    ],
)
def test_bodies_that_are_no_forms_are_refused(kind: str, body: bytes) -> None:
    with pytest.raises(InvalidInput):
        form_of(scope_of(kind, body))


def test_form_keeps_empty_and_repeated_fields() -> None:
    found = form_of(scope_of(f"{FORM}; charset=utf-8", b"a=1&a=&b=x%0D%0Ay+z"))
    assert found == [("a", "1"), ("a", ""), ("b", "x\ny z")]
