"""Replicas that fetch weights, failed sources and direct offers ↔ messages of weight_service.proto."""

from __future__ import annotations

from collections.abc import Iterable

from fairlead.codec.tokens import version_from_pb, version_to_pb
from fairlead.errors import InvalidInput
from fairlead.types.weights import DirectOffer, FailedSource, SourceFailure, WeightReplica
from fairlead.v1 import weight_service_pb2

_FAILURE_TO_PB = {
    SourceFailure.BROKEN: weight_service_pb2.SOURCE_FAILURE_BROKEN,
    SourceFailure.CORRUPT: weight_service_pb2.SOURCE_FAILURE_CORRUPT,
}
_FAILURE_FROM_PB = {int(value): failure for failure, value in _FAILURE_TO_PB.items()}


def weight_replica_to_pb(replica: WeightReplica) -> weight_service_pb2.WeightReplica:
    """Return a replica as a message."""
    return weight_service_pb2.WeightReplica(
        replica_id=replica.replica_id,
        relay_address=replica.relay_address,
        versions=map(version_to_pb, replica.versions),
    )


def weight_replica_from_pb(message: weight_service_pb2.WeightReplica) -> WeightReplica:
    """Return a replica from a message."""
    return WeightReplica(
        message.replica_id, message.relay_address, tuple(map(version_from_pb, message.versions))
    )


def failed_source_to_pb(source: FailedSource) -> weight_service_pb2.FailedSource:
    """Return a failed source as a message."""
    return weight_service_pb2.FailedSource(
        relay_address=source.relay_address, failure=_FAILURE_TO_PB[source.failure]
    )


def failed_sources_from_pb(messages: Iterable[weight_service_pb2.FailedSource]) -> tuple[FailedSource, ...]:
    """Return failed sources from messages.

    Raises:
        InvalidInput: for an unknown failure.
    """
    found = []
    for index, message in enumerate(messages):
        if int(message.failure) not in _FAILURE_FROM_PB:
            allowed = ", ".join(failure.name for failure in SourceFailure)
            raise InvalidInput("failed.failure", index=index, got=int(message.failure), allowed=allowed)
        found.append(FailedSource(message.relay_address, _FAILURE_FROM_PB[int(message.failure)]))
    return tuple(found)


def direct_offer_to_pb(offer: DirectOffer) -> weight_service_pb2.DirectOffer:
    """Return a direct offer as a message."""
    return weight_service_pb2.DirectOffer(port=offer.port, ticket=offer.ticket)


def direct_offer_from_pb(message: weight_service_pb2.DirectOffer, host: str) -> DirectOffer:
    """Return a direct offer from a message sent by a host.

    Raises:
        InvalidInput: for an invalid port.
    """
    if not 0 < message.port < 1 << 16:
        raise InvalidInput("direct.port", got=message.port, allowed="from 1 to 65535")
    return DirectOffer(host, message.port, message.ticket)
