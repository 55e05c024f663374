"""gRPC reflection, in both versions of its protocol: newer clients ask for `v1` first.

The package grpcio-reflection serves only `v1alpha`. The messages of both have the same fields and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc import aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

_NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
"""Full names of both versions. Only the second has descriptors, so only it is listed."""


def add_reflection(server: aio.Server, services: Sequence[str]) -> None:
    """Let clients of a server list its services and read their messages.

    Args:
        server: not started yet.
        services: full names of its services.
    """
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in _NAMES
        )
    )
