"""Who may see the page: everyone on the machine itself; over a network, who has its link."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from fairlead.errors import Unauthenticated
from services.runtime.http.cookies import SessionCookie

_COOKIE_SECONDS = 7 * 86_400


class Visitors:
    """Checks the key in the link, and in the cookie that replaces it."""

    def __init__(self, key: str) -> None:
        """
        Args:
            key: that visitors need; empty for none.
        """
        self.key = key
        """The key; empty if none is needed."""
        self._cookie = SessionCookie("fairlead_dashboard", secure=False)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Check the cookie of a request.

        Raises:
            Unauthenticated: it does not have the key.
        """
        if self.key and not self.is_key(self._cookie.read(headers) or ""):
            raise Unauthenticated("this page needs the link that `fairlead dashboard` printed")

    def is_key(self, given: str) -> bool:
        """Return whether a text is the key."""
        return bool(self.key) and hmac.compare_digest(given.encode(), self.key.encode())

    def cookie(self) -> str:
        """Return the value of `Set-Cookie` for a visitor who came with the link."""
        return self._cookie.set(self.key, max_age_seconds=_COOKIE_SECONDS)
