"""Refuse requests that a browser sends without its person's will: cross-site requests and DNS rebinding.

A browser adds cookies to requests that a foreign page makes it send, and any page can reach a server on the
loopback interface of the machine. No tokens are needed: the browser itself says where a request comes from
(the method of Go's `net/http.CrossOriginProtection`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from fairlead.errors import PermissionDenied

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""They must not change anything."""
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that no DNS answer of a stranger can change."""


class BrowserGuard:
    """Checks the headers with which a browser describes the origin of a request."""

    def __init__(self, *, origin: str = "", hosts: Iterable[str] | None = None, setting: str) -> None:
        """
        Args:
            origin: the origin under which pages are published, `https://feedback.example.com`. Where a proxy
                changes `Host`, only this identifies our own pages. Empty: that of `Host`.
            hosts: names that `Host` may have, without ports; None accepts every name. A server open to
                everyone on its machine needs them: a page of a name that resolves to 127.0.0.1 is on the same
                origin as the server.
            setting: the key of the configuration that names the origin, for messages.
        """
        self._origin = origin.lower()
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        if self._hosts is not None and origin:
            self._hosts |= {urlsplit(origin).hostname or ""}
        self._setting = setting

    def check(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Check one request.

        Requests without `Sec-Fetch-Site` and `Origin` are not from a browser, and carry only credentials that
        their sender has.

        Args:
            method: of the request.
            headers: with names in lower case.

        Raises:
            PermissionDenied: the name of the host is unknown, or a page of another origin sent a request that
                may change something.
        """
        found = {name: value.decode("latin-1").strip() for name, value in headers if name in _READ}
        host = found.get(b"host", "").lower()
        if self._hosts is not None and _name_of(host) not in self._hosts:
            raise PermissionDenied(
                f"the header Host has {host or 'no name'!r}, which is not a name of this server; to "
                f"publish it under that name, set {self._setting}"
            )
        if method not in _SAFE_METHODS:
            self._check_origin(found, host)

    def _check_origin(self, found: Mapping[bytes, str], host: str) -> None:
        site, origin = found.get(b"sec-fetch-site", ""), found.get(b"origin", "").lower()
        if site in ("same-origin", "none"):
            return
        if not site and (not origin or origin == self._origin or urlsplit(origin).netloc == (host or None)):
            return
        raise PermissionDenied(
            f"the request was sent by a page of {origin or 'another site'}, and this server accepts changes "
            f"only from its own pages, {self._origin or f'those of {host}'}; if a proxy publishes it under "
            f"another name, set {self._setting}"
        )


_READ = (b"host", b"origin", b"sec-fetch-site")


def _name_of(host: str) -> str:
    """Return the name in a value of `Host`, without the port and the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
