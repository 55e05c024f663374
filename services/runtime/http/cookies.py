"""One cookie that identifies a session: reading it from a request, and the header that sets or deletes it.

Scripts cannot read it (HttpOnly), and other sites' pages send it only when a person follows a link to us
(SameSite=Lax). Over HTTPS its name has the prefix `__Host-`: browsers then accept it only from this very host
(RFC 6265bis, section 4.1.3.2).
"""

from __future__ import annotations

from collections.abc import Iterable


class SessionCookie:
    """The cookie of a service's sessions."""

    def __init__(self, name: str, *, secure: bool) -> None:
        """
        Args:
            name: letters and `_`.
            secure: whether people reach the service over HTTPS.
        """
        self._secure = secure
        self.name = f"__Host-{name}" if secure else name
        """Name in the headers."""

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the value that a request carries; None without one.

        Args:
            headers: with names in lower case.
        """
        wanted = self.name.encode()
        for header, value in headers:
            if header == b"cookie":
                for pair in value.split(b";"):
                    name, equals, found = pair.strip().partition(b"=")
                    if equals and name == wanted:
                        return found.strip(b'"').decode("latin-1")
        return None

    def set(self, value: str, *, max_age_seconds: int) -> str:
        """Return the value of `Set-Cookie` for a new session."""
        secure = "; Secure" if self._secure else ""
        return f"{self.name}={value}; Path=/; Max-Age={max_age_seconds}; HttpOnly; SameSite=Lax{secure}"

    def delete(self) -> str:
        """Return the value of `Set-Cookie` that ends a session in the browser."""
        return self.set("", max_age_seconds=0)
