"""What the OpenAPI description says of every path: its API key, and the headers of all requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, `fl_…`. Also for OpenAI's clients.",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key in another header.",
    },
}
_HEADERS = {
    "X-Request-Id": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Identifies the request in the logs of every process; returned in the response.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    },
    "X-Request-Timeout": {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "Seconds that the caller waits for the response.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
}


def describe_headers(app: FastAPI, *, requires_key: Callable[[str], bool] | None) -> None:
    """Add API keys, if they are required, and the headers of all requests to the description of an app.

    Args:
        app: with all its routes.
        requires_key: returns whether a path needs an API key; the page /docs then has the button *Authorize*.
            None: callers need no keys.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            components = schema.setdefault("components", {})
            components["parameters"] = _HEADERS
            if requires_key is not None:
                components["securitySchemes"] = _SCHEMES
            for path, methods in schema["paths"].items():
                closed = requires_key is not None and requires_key(path)
                for operation in methods.values():
                    _describe(operation, closed=closed)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(operation: dict[str, Any], *, closed: bool) -> None:
    references = [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS]
    operation["parameters"] = [*operation.get("parameters", []), *references]
    if closed:
        operation["security"] = [{name: []} for name in _SCHEMES]
