"""Render pages: every value is escaped, and the headers let a browser run only the script of this service."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import MutableHeaders

from services.feedback.identity import NO_KEY, NO_NAME
from services.feedback.pages import static
from services.feedback.service import Service
from services.feedback.store.records import Person
from services.runtime.http.failures import Failure

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
"""Headers of every page and redirect."""
_NOT_HTML = re.compile("[\0\ud800-\udfff]")
"""Characters that HTML in UTF-8 cannot hold."""
_TITLES = {
    400: "That did not fit",
    401: "Sign in",
    403: "This is not for you",
    404: "There is no such page",
    409: "That cannot be done any more",
}
_MESSAGES = {
    "Not Found": "The address is wrong, or what it named is gone.",
    "Method Not Allowed": "This address takes only what a form of its page sends.",
    NO_NAME: "",
    NO_KEY: "",
}
"""Messages of the framework and for programs, in words for people; the page to sign in has its own."""


class Renderer:
    """Makes the pages of a service from its templates."""

    def __init__(self, service: Service) -> None:
        self._root = service.section.root_path
        self._environment = Environment(
            loader=PackageLoader("services.feedback"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            link=self.link, static=self._static, is_open=service.is_open, letter=letter
        )
        self._environment.filters.update(
            when=when, percent=percent, figure=figure, duration=duration, words=words, path=_path_part
        )

    def link(self, path: str) -> str:
        """Return a path of this service with the prefix of the proxy."""
        return f"{self._root}{path}"

    def page(
        self, template: str, person: Person | None = None, status: int = 200, /, **values: object
    ) -> Response:
        """Return a page.

        Args:
            template: name without the suffix.
            person: who is signed in.
            status: of HTTP.
            values: for the template.
        """
        text = self._environment.get_template(f"{template}.html.j2").render(person=person, **values)
        content = _NOT_HTML.sub("\ufffd", text).encode()
        return Response(content, status, dict(HEADERS), media_type="text/html; charset=utf-8")

    def redirect(self, path: str) -> Response:
        """Return a redirect after a form was handled: reloading the next page sends nothing again."""
        return Response(status_code=303, headers={**HEADERS, "location": self.link(path)})

    def failure(self, failure: Failure, path: str, request_id: str) -> Response:
        """Return the page of a request that failed; of one that needs a session, the page to sign in."""
        title = _TITLES.get(failure.status, "Something went wrong")
        message = _MESSAGES.get(failure.message, failure.message)
        if failure.status == 401:
            found = self.sign_in(title, back=path, message=message, status=401)
        else:
            values: dict[str, object] = {"message": message, "request_id": request_id}
            found = self.page("failure", None, failure.status, title=title, **values)
        headers = MutableHeaders(raw=found.raw_headers)
        for name, value in failure.headers.items():
            if name != "www-authenticate":
                headers[name] = value
        return found

    def sign_in(
        self,
        title: str,
        *,
        back: str,
        invitation: str = "",
        handle: str = "",
        message: str = "",
        status: int = 200,
    ) -> Response:
        """Return the page to sign in.

        Args:
            title: of the page.
            back: path to go to afterwards.
            invitation: token of an invitation.
            handle: that was refused.
            message: why somebody has to sign in, or why the handle was refused.
            status: of HTTP.
        """
        values: dict[str, object] = {"back": back, "invitation": invitation, "handle": handle}
        return self.page("sign_in", None, status, title=title, message=message, **values)

    def _static(self, name: str) -> str:
        return self.link(f"/static/{name}?v={static.digest(name)}")


def routes() -> APIRouter:
    """Return a router for pages, which the description of the API leaves out."""
    return APIRouter(include_in_schema=False, default_response_class=Response)


def letter(place: int) -> str:
    """Return the name of the answer shown at a place from 1: A, B, C."""
    return chr(ord("A") + place - 1)


def when(seconds: float | None) -> str:
    """Return a time in UTC to the minute."""
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def percent(share: float | None) -> str:
    """Return a share as a percentage with one digit."""
    return "–" if share is None else f"{100 * share:.1f}%"


def figure(value: float | None) -> str:
    """Return a number with two digits."""
    return "–" if value is None else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """Return a duration in its largest unit."""
    if seconds is None:
        return "–"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def words(name: str) -> str:
    """Return an identifier as words."""
    return name.replace("_", " ")


def _path_part(text: str) -> str:
    return quote(text, safe="")
