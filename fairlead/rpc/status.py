"""What a gRPC status means to a caller: the way back from `fairlead.errors.GRPC_STATUS`.

Between the channel and the error tree. Knows no message and no service.
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
"""Header and metadata: names a request in the logs of all that it passes. Every answer that a server itself
gave has it, errors included."""
MAX_REQUEST_TOKENS = "x-max-request-tokens"
"""Metadata of a request: a model service refuses it if it holds more tokens. What a gateway says of the key
that its caller showed, whose tokens it cannot count itself."""
RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata of RESOURCE_EXHAUSTED: milliseconds after which to try again (gRFC A6's key)."""

# As BoringSSL and gRPC's check of host names put it.
_DISTRUST = re.compile(r"CERTIFICATE_VERIFY_FAILED: (?P<why>[^:]+)|Hostname Verification Check failed")
# As gRPC's core puts it, whichever side of the kernel notices first.
_BROKEN = re.compile(
    r"socket closed|connection reset|broken pipe|recvmsg|keepalive|ping timeout", re.IGNORECASE
)
_RETRIED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        # Sent by a server whose grace period ended; a caller's own cancellation is no AioRpcError.
        grpc.StatusCode.CANCELLED,
    }
)


def pushback_seconds(error: aio.AioRpcError) -> float | None:
    """After how long the server wants to be asked again; None if it did not say."""
    trailers = error.trailing_metadata()
    text = trailers.get(RETRY_PUSHBACK) if trailers is not None else None
    try:
        return max(0.0, int(text) / 1000) if text is not None else None
    except ValueError:
        return None


def is_lost(error: aio.AioRpcError) -> bool:
    """Whether the connection broke under the call, as when the server was killed; nobody answered."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    trailers = error.trailing_metadata()
    answered = trailers is not None and trailers.get(REQUEST_ID) is not None
    return not answered and _BROKEN.search(error.details() or "") is not None


def is_too_large(error: aio.AioRpcError) -> bool:
    """Whether gRPC itself refused the message for its size, under the status that also means `full`."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")


def is_broken_stream(error: aio.AioRpcError) -> bool:
    """Whether a stream ended while a message was being sent: grpc.aio then hides the server's status."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


def distrust(error: aio.AioRpcError) -> str:
    """Why the client does not trust the server's certificate; empty if it was something else."""
    found = _DISTRUST.search(error.details() or "") if error.code() is grpc.StatusCode.UNAVAILABLE else None
    if found is None:
        return ""
    return found["why"] or "it is of another name than the address (see tls.server_name)"


def is_worth_another_try(error: aio.AioRpcError) -> bool:
    """Whether the same call may succeed later or elsewhere."""
    mended = error.code() in _RETRIED and not is_too_large(error) and not distrust(error)
    return mended or is_broken_stream(error)


def error_from_status(error: aio.AioRpcError, *, where: str, so_far: str) -> FairleadError:
    """The error of our tree that says the same.

    Args:
        error: as raised by the call.
        where: service and address, for the message.
        so_far: what was tried, for the message.
    """
    details = error.details() or ""
    if is_too_large(error):
        return RemoteInvalidInput(details)
    if is_broken_stream(error):
        return Unavailable(f"{where}: the stream broke ({so_far})")
    if why := distrust(error):
        return Unauthenticated(f"{where}: its certificate is not trusted (see tls.ca): {why}")
    delay = pushback_seconds(error) or 1.0
    return error_from_code(error.code(), details, retry_after_seconds=delay, where=where, so_far=so_far)


def error_from_code(
    code: grpc.StatusCode, details: str, *, retry_after_seconds: float, where: str, so_far: str = ""
) -> FairleadError:
    """The error of our tree that a status stands for; arguments as of `error_from_status`."""
    message = f"{where}: {details} ({f'{code.name} {so_far}'.rstrip()})"
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return RemoteInvalidInput(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        told = re.sub(r"; try again in [0-9.e+-]+ s$", "", details)
        return Overloaded(f"{where}: {told}", retry_after_seconds=retry_after_seconds)
    return _KINDS.get(code, InternalError)(message)


_KINDS: dict[grpc.StatusCode, type[FairleadError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.FAILED_PRECONDITION: StaleWeights,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: NotOffered,
}
