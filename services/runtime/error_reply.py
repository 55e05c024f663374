"""Turn an error into what its caller may see: a status, a message without internals, a retry delay.

Used by both edges: gRPC (RPCs and single requests of a stream) and HTTP. An internal error is logged under an
id, and the caller gets only that id. Knows nothing about messages or dialects.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

import grpc

from fairlead.errors import (
    HTTP_STATUS,
    FairleadError,
    InternalError,
    InvalidInput,
    Overloaded,
    ReplicaLost,
    grpc_status,
)
from fairlead.log import LogSummary
from services.runtime.access.control import caller

logger = logging.getLogger(__name__)

_REFUSALS = LogSummary(logger)
"""Refusals by kind and method: callers that retry would fill the log."""


_MESSAGE_BYTES = 2_000
"""Limit on a message in UTF-8. gRPC sends a byte as up to three; most clients refuse trailers of 8 KiB."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error as the caller sees it."""

    code: grpc.StatusCode
    """gRPC status."""
    message: str
    """One sentence for people."""
    retry_after_seconds: float | None = None
    """Delay before the next attempt, if the server is overloaded."""
    replica_lost: bool = False
    """Whether the server ends because a process of its model died during the request."""

    @property
    def http_status(self) -> int:
        """HTTP status of the same meaning."""
        return HTTP_STATUS[self.code]


def error_reply(error: Exception, *, log_name: str, where: str = "") -> ErrorReply:
    """Return what the caller may see of an error; log an internal error under an id.

    Args:
        error: one of `fairlead.errors`, or a bug.
        log_name: whose log has the details, such as `server` or `gateway`; part of the message.
        where: method or path, for the log.
    """
    code = grpc_status(error)
    if code is not grpc.StatusCode.INTERNAL:
        delay = error.retry_after_seconds if isinstance(error, Overloaded) else None
        return ErrorReply(code, _bounded(str(error)), delay, replica_lost=isinstance(error, ReplicaLost))
    error_id = secrets.token_hex(6)
    logger.error(
        "internal error %s%s",
        error_id,
        f" in {where}" if where else "",
        exc_info=error,
        extra={"request_id": caller().request_id},
    )
    # The message of an InternalError is meant for callers; that of any other error may reveal internals.
    what = str(error) if isinstance(error, InternalError) else "internal error"
    return ErrorReply(code, _bounded(f"{what} ({error_id} in the {log_name}'s log)"))


def _bounded(message: str) -> str:
    """Return a message that fits into the trailers of an RPC."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MESSAGE_BYTES:
        return message
    return encoded[:_MESSAGE_BYTES].decode(errors="ignore") + "…"


def rpc_error_reply(error: Exception, *, method: str, peer: str) -> ErrorReply:
    """Return what the caller of an RPC may see of an error, and log the error.

    Args:
        error: one of `fairlead.errors`, or a bug.
        method: full name of the RPC, for the log.
        peer: address of the caller, for the log.
    """
    reply = error_reply(error, log_name="server", where=method)
    if reply.code is not grpc.StatusCode.INTERNAL:
        # `got` of an InvalidInput may be a person's text, so only the field is logged.
        what = error.where if isinstance(error, InvalidInput) else reply.message
        kind = type(error).__name__ if isinstance(error, FairleadError) else "error"
        fields = {"method": method, "code": reply.code.name, "peer": peer, "request_id": caller().request_id}
        _REFUSALS.add(f"refused: {kind} in {method}", what, extra=fields)
    return reply
