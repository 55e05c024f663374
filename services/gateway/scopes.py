"""The scope that each path requires of a caller. A path that is not listed requires the scope `admin`."""

from __future__ import annotations

from services.runtime.access import Need

DOCS_FILES = "/docs/files"
"""Path of the scripts and styles that the API page loads."""

_EXACT: dict[str, Need] = {
    "/healthz": None,
    "/readyz": None,
    "/docs": None,
    "/docs/oauth2-redirect": None,
    "/openapi.json": None,
    "/v2/health/live": None,
    "/v2/health/ready": None,
    "/v1/models": "any",
    "/v1/rewards": "score",
    "/v1/rewards:rank": "score",
    "/v1/rewards:best-of-n": "score",
    "/get_reward": "score",
    "/classify": "score",
    "/v2": "score",
    "/v1/chat/completions": "generate",
}
_LOADING = ("/load", "/unload")


def need_of(path: str) -> Need:
    """Return what a path requires.

    /metrics requires `admin` here; the metrics port serves it without a key.
    """
    if path in _EXACT:
        return _EXACT[path]
    if path.startswith(f"{DOCS_FILES}/"):
        return None
    if path.startswith("/v2/") and not path.endswith(_LOADING):
        return "score"
    return "admin"
