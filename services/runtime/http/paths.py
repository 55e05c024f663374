"""The path prefix under which a proxy publishes the service, and the path of a request without it.

As ASGI defines it, `scope["path"]` begins with `scope["root_path"]`, whether the proxy removes the prefix
from requests or not. Rules for paths, such as the scope that each requires, are for paths without it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any


def set_root(scope: MutableMapping[str, Any], root_path: str) -> None:
    """Set the prefix of a request; add it to its path if the proxy has removed it."""
    path = scope["path"]
    scope["root_path"] = root_path
    if root_path and path != root_path and not path.startswith(f"{root_path}/"):
        scope["path"] = root_path + path


def path_of(scope: MutableMapping[str, Any]) -> str:
    """Return the path of a request without the prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope["root_path"]) or "/"
