"""What a caller is told of an error: its status, a sentence without internals, when to try again.

For whole RPCs and for single requests of a stream alike. Knows no message; the log gets what callers do not.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

import grpc

from fairlead.errors import FairleadError, InternalError, InvalidInput, Overloaded, grpc_status
from services.runtime.access import caller

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error as it leaves the process."""

    code: grpc.StatusCode
    """Its status."""
    message: str
    """A sentence for the caller."""
    retry_after_seconds: float | None = None
    """After how long to try again, if the server is full."""


def error_reply(error: Exception, *, method: str, peer: str) -> ErrorReply:
    """What the caller is told of an error; logs what it was.

    Args:
        error: of our tree, or a bug.
        method: of the RPC, for the log.
        peer: who called, for the log.
    """
    code = grpc_status(error)
    if code is grpc.StatusCode.INTERNAL:
        error_id = secrets.token_hex(6)
        fields = {"request_id": caller().request_id}
        logger.error("internal error %s in %s", error_id, method, exc_info=error, extra=fields)
        # An InternalError is a sentence meant for callers; anything else may hold internals.
        what = str(error) if isinstance(error, InternalError) else "internal error"
        return ErrorReply(code, f"{what} ({error_id} in the server's log)")
    # What was got may be a person's text, so only the place of the mistake is logged.
    place = error.where if isinstance(error, InvalidInput) else str(error)
    kind = type(error).__name__ if isinstance(error, FairleadError) else "error"
    fields = {"method": method, "code": code.name, "peer": peer, "request_id": caller().request_id}
    logger.info("refused: %s %s", kind, place, extra=fields)
    return ErrorReply(code, str(error), error.retry_after_seconds if isinstance(error, Overloaded) else None)
