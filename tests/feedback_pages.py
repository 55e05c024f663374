"""A visitor of the pages of the feedback service: a browser without scripts that sends forms."""

from __future__ import annotations

import asyncio
import http.client
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlencode

VOID = ("meta", "link", "input", "hr", "br")


@dataclass
class Element:
    """A start tag, with the text up to its end."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


class Document(HTMLParser):
    """The elements of a page in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self._open, [one.tag for one in self._open]

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        found = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(found)
        if tag not in VOID:
            self._open.append(found)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        named = {name.replace("_", "-").strip("-"): value for name, value in attributes.items()}
        return [
            one
            for one in self.elements
            if one.tag == tag and all(one.attributes.get(name) == value for name, value in named.items())
        ]


@dataclass
class Page:
    """A response."""

    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def html(self) -> str:
        return self.body.decode()

    @property
    def document(self) -> Document:
        return Document(self.html)

    def hidden(self) -> dict[str, str]:
        """Return the hidden fields of the first form with the id `task`, or of all."""
        return {
            one.attributes["name"]: one.attributes["value"]
            for one in self.document.all("input", type="hidden")
            if one.attributes["name"] in ("request", "opened", "back", "invitation", "base")
        }


@dataclass
class Visitor:
    """Somebody with a browser."""

    address: str
    cookie: str = ""
    pages: list[Page] = field(default_factory=list)

    async def get(self, path: str) -> Page:
        return await asyncio.to_thread(self._ask, "GET", path, None)

    async def post(self, path: str, *fields: tuple[str, str], follow: bool = True, **more: str) -> Page:
        """Send a form, and follow the redirect."""
        pairs = [*fields, *((name.replace("_", "-"), value) for name, value in more.items())]
        found = await asyncio.to_thread(self._ask, "POST", path, urlencode(pairs))
        if follow and found.status == 303:
            return await self.get(found.headers["location"])
        return found

    async def sign_in(self, handle: str) -> Page:
        return await self.post("/sign-in", handle=handle)

    def _ask(self, method: str, path: str, body: str | None) -> Page:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        headers = {"cookie": self.cookie} if self.cookie else {}
        if body is not None:
            headers |= {"content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "same-origin"}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        found = Page(
            path,
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )
        connection.close()
        if cookie := found.headers.get("set-cookie"):
            self.cookie = cookie.partition(";")[0]
        self.pages.append(found)
        return found


def check_page(page: Page) -> None:
    """Check what must hold of every page: headers, and no markup that a policy would have to stop."""
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    assert page.headers["cache-control"] == "no-store"
    if not page.headers.get("content-type", "").startswith("text/html"):
        return
    document = page.document
    for one in document.elements:
        assert one.tag not in ("style", "iframe", "object", "embed", "base", "img", "template"), one
        assert not any(name == "style" or name.startswith("on") for name in one.attributes), one
        if one.tag == "script":
            assert one.attributes["src"].startswith("/static/rank.js?"), one
            assert not one.text
        if one.tag == "a":
            assert re.match(r"[/#]", one.attributes["href"]), one
    ids = [one.attributes["id"] for one in document.elements if "id" in one.attributes]
    assert len(ids) == len(set(ids)), sorted(ids)
