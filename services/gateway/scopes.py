"""The scope that each path requires of a caller. A path that is not listed requires the scope `admin`."""

from __future__ import annotations

import re

from services.runtime.access.control import Need

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
    "/v1/embeddings": "score",
    "/v2": "score",
    "/v1/chat/completions": "generate",
}
_LOADING = ("/load", "/unload")
_MODEL_READY = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/ready")
"""Readiness of a model, which is open over gRPC too."""


def need_of(path: str) -> Need:
    """Return what a path requires.

    /metrics requires `admin` here; the metrics port serves it without a key.
    """
    if path in _EXACT:
        return _EXACT[path]
    if path.startswith(f"{DOCS_FILES}/") or _MODEL_READY.fullmatch(path):
        return None
    if path.startswith("/v1/models/"):
        return "any"
    if path.startswith("/v2/") and not path.endswith(_LOADING):
        return "score"
    return "admin"
