"""What every route of the service uses: the store with its threads, the metrics, and how people sign in."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from fairlead.config.feedback import FeedbackSection
from fairlead.metrics import FeedbackMetrics
from fairlead.rpc.credentials import is_loopback
from services.feedback.store import Store
from services.feedback.store_threads import StoreThreads
from services.runtime.http.cookies import SessionCookie


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a running service."""

    store: Store
    """What people were asked and said."""
    threads: StoreThreads
    """Where calls of the store run."""
    metrics: FeedbackMetrics
    """Counts."""
    section: FeedbackSection
    """The configuration."""
    cookie: SessionCookie
    """The cookie of sessions."""
    is_open: bool
    """Whether callers need not sign in, because only this machine can reach the service."""

    def link(self, path: str) -> str:
        """Return a path as people can open it: with the origin, if one is set, and the prefix of a proxy."""
        return f"{self.section.origin}{self.section.root_path}{path}"


def needs_no_sign_in(section: FeedbackSection, address: str, *, requires_keys: bool) -> bool:
    """Return whether everybody who can reach the service may do everything.

    That is so on the loopback interface without API keys, as for every service of a run on one machine,
    unless an origin says that a proxy publishes it to others.

    Args:
        section: the configuration.
        address: `host:port` that the server listens on.
        requires_keys: whether programs need API keys.
    """
    published = urlsplit(section.origin).hostname or "localhost"
    return not requires_keys and is_loopback(address) and is_loopback(f"{published}:0")
