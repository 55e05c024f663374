"""The JSON that each dialect of the gateway has for an error, and which dialect a path belongs to."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse, Response

from services.runtime.http.failures import Failure, error_content, failure_of, with_path

LOG_NAME = "gateway"
"""Named in messages about internal errors."""
_TOO_LONG = "context_length_exceeded"


def response_to(error: Exception, path: str, request_id: str) -> Response:
    """Return the response to a request that failed, in the dialect of its path."""
    failure = with_path(failure_of(error, log_name=LOG_NAME, path=path), path)
    return JSONResponse(content(dialect_of(path), failure, request_id), failure.status, failure.headers)


def content(dialect: str, failure: Failure, request_id: str) -> dict[str, Any]:
    """Return the JSON body that a dialect has for a failure."""
    return _CONTENT.get(dialect, error_content)(failure, request_id)


def dialect_of(path: str) -> str:
    """Return the name of the dialect that a path belongs to, for errors and metrics."""
    if path == "/v2" or path.startswith("/v2/"):
        return "open_inference"
    if path.startswith("/v1/rewards"):
        return "fairlead"
    if path.startswith("/v1/models/"):
        return "openai"
    return _DIALECTS.get(path, "other")


_DIALECTS = {
    "/get_reward": "openrlhf",
    "/classify": "vllm",
    "/v1/embeddings": "sglang",
    "/v1/chat/completions": "openai",
    "/v1/models": "openai",
}


def _openai(failure: Failure, request_id: str) -> dict[str, Any]:
    """As OpenAI's clients read it: https://platform.openai.com/docs/guides/error-codes."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    kind = kinds.get(failure.status, "rate_limit_error" if failure.status == 429 else failure.kind)
    message, code = failure.message, failure.kind
    if failure.is_too_long:
        # Some clients look for the code, others for OpenAI's sentence, to choose a model for longer texts.
        message, code = f"{message}. This model's maximum context length is exceeded.", _TOO_LONG
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error" if failure.status in (404, 405, 413) else kind,
            "param": failure.field,
            "code": code,
        }
    }


def _openrlhf(failure: Failure, request_id: str) -> dict[str, Any]:
    return {"detail": failure.message}


def _open_inference(failure: Failure, request_id: str) -> dict[str, Any]:
    return {"error": failure.message}


_CONTENT = {
    "open_inference": _open_inference,
    "openrlhf": _openrlhf,
    "vllm": _openai,
    "sglang": _openai,
    "openai": _openai,
}
