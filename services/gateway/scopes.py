"""What a caller needs for each path. A path that does not stand here needs `admin`."""

from __future__ import annotations

from services.runtime.access import Need

DOCS_FILES = "/docs/files"
"""Where the page of the API has its scripts."""

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
    """What a path needs; /metrics, which its own port serves to everybody, needs `admin` here."""
    if path in _EXACT:
        return _EXACT[path]
    if path.startswith(f"{DOCS_FILES}/"):
        return None
    if path.startswith("/v2/") and not path.endswith(_LOADING):
        return "score"
    return "admin"
