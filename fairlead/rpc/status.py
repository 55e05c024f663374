"""gRPC statuses → errors of `fairlead.errors`: the inverse of `fairlead.errors.GRPC_STATUS`.

Sits between grpc.aio and the error tree. Knows nothing about messages or services.
"""

from __future__ import annotations

import re

import grpc
from grpc import aio

from fairlead.errors import (
    DeadlineExceeded,
    FairleadError,
    InternalError,
    NotFound,
    NotOffered,
    Overloaded,
    PermissionDenied,
    RemoteInvalidInput,
    StaleWeights,
    Unauthenticated,
    Unavailable,
)

REQUEST_ID = "x-request-id"
"""Header and metadata: names a request in the logs of every process that it passes. Every response made by a
server has it, errors included."""
TRACEPARENT = "traceparent"
"""Header and metadata: the caller's span, as in W3C Trace Context."""
MAX_REQUEST_TOKENS = "x-max-request-tokens"
"""Metadata of a request: a model service refuses a request with more tokens. The gateway sets it to the limit
of the caller's API key, since it cannot count tokens itself."""
EXCLUSIVE_START = "x-exclusive-start"
"""Initial metadata of a response: the exclusive request begins to run. Without it, the replica died of
another request."""
REPLICA_LOST = "x-replica-lost"
"""Trailing metadata of UNAVAILABLE: the replica lost a process of its model during this request, and ends."""
RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata of RESOURCE_EXHAUSTED: milliseconds to wait before a retry (key of gRFC A6)."""

# The words of BoringSSL and of gRPC's check of host names.
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED: (?P<why>[^:]+)|Hostname Verification Check failed")
_SIZES = re.compile(r"larger than max \((\d+) vs\. (\d+)\)")
# The words of gRPC's core, which depend on where the break is noticed first.
_BROKEN = re.compile(
    r"socket closed|connection reset|broken pipe|recvmsg|keepalive|ping timeout", re.IGNORECASE
)


def pushback_seconds(error: aio.AioRpcError) -> float | None:
    """Return the delay before a retry that the server asked for; None if it asked for none."""
    trailers = error.trailing_metadata()
    text = trailers.get(RETRY_PUSHBACK) if trailers is not None else None
    try:
        return max(0.0, int(text) / 1000) if text is not None else None
    except ValueError:
        return None


def is_lost(error: aio.AioRpcError) -> bool:
    """Return whether the connection broke during the call without a response, as when the server is
    killed, or the server says that it ends because a process of its model was.
    """
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    trailers = error.trailing_metadata()
    if trailers is not None and trailers.get(REPLICA_LOST) is not None:
        return True
    answered = trailers is not None and trailers.get(REQUEST_ID) is not None
    return not answered and _BROKEN.search(error.details() or "") is not None


def has_started(error: aio.AioRpcError) -> bool:
    """Return whether the server had announced that the exclusive request begins to run."""
    metadata = error.initial_metadata()
    return metadata is not None and metadata.get(EXCLUSIVE_START) is not None


def is_too_large(error: aio.AioRpcError) -> bool:
    """Return whether gRPC refused the message for its size, under the status that also means overload."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")


def is_broken_stream(error: aio.AioRpcError) -> bool:
    """Return whether a stream ended during a write: grpc.aio then hides the status of the server."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


def untrusted_reason(error: aio.AioRpcError) -> str:
    """Return why the client does not trust the server's certificate; empty for any other error."""
    found = _UNTRUSTED.search(error.details() or "") if error.code() is grpc.StatusCode.UNAVAILABLE else None
    if found is None:
        return ""
    return found["why"] or "its name is not that of the address (see tls.server_name)"


def error_from_status(error: aio.AioRpcError, *, where: str, so_far: str) -> FairleadError:
    """Return the error of a failed call; a `Transient` one is worth a retry.

    Args:
        error: raised by the call.
        where: service and address, for the message.
        so_far: number and time of the attempts, for the message.
    """
    details = error.details() or ""
    if is_too_large(error):
        sizes = _SIZES.search(details)
        if sizes is not None:
            details = f"request: got '{sizes[1]} bytes', allowed: at most {sizes[2]} bytes"
        return RemoteInvalidInput(details)
    if is_broken_stream(error):
        return Unavailable(f"{where}: the stream broke ({so_far})")
    if why := untrusted_reason(error):
        return Unauthenticated(f"{where}: its certificate is not trusted (see tls.ca): {why}")
    delay = pushback_seconds(error) or 1.0
    return error_from_code(error.code(), details, retry_after_seconds=delay, where=where, so_far=so_far)


def error_from_code(
    code: grpc.StatusCode, details: str, *, retry_after_seconds: float, where: str, so_far: str = ""
) -> FairleadError:
    """Return the error of a status; the arguments are those of `error_from_status`."""
    message = f"{where}: {details} ({f'{code.name} {so_far}'.rstrip()})"
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return RemoteInvalidInput(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        message = re.sub(r"; try again in [0-9.e+-]+ s$", "", details)
        return Overloaded(f"{where}: {message}", retry_after_seconds=retry_after_seconds)
    return _KINDS.get(code, InternalError)(message)


_KINDS: dict[grpc.StatusCode, type[FairleadError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # Sent by a server whose grace period ended; a caller's own cancellation is not an AioRpcError.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.FAILED_PRECONDITION: StaleWeights,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: NotOffered,
}
