"""The type of an RPC as the metrics of gRPC name it. Knows services only by their loaded descriptors."""

from __future__ import annotations

from functools import cache

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor


def methods(service: str) -> list[str]:
    """Return the names of the methods of a service; none if its messages are not loaded."""
    return [method.name for method in _descriptors(service)]


@cache
def call_type(service: str, method: str) -> str:
    """Return `unary`, `client_stream`, `server_stream` or `bidi_stream`.

    Args:
        service: full name, such as `fairlead.v1.PolicyService`; `unary` if it is not known.
        method: name of the method.
    """
    for known in _descriptors(service):
        if known.name == method:
            if known.client_streaming:
                return "bidi_stream" if known.server_streaming else "client_stream"
            return "server_stream" if known.server_streaming else "unary"
    return "unary"


def _descriptors(service: str) -> list[MethodDescriptor]:
    try:
        return list(descriptor_pool.Default().FindServiceByName(service).methods)
    except KeyError:
        return []
