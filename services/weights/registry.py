"""The registry of replicas: which versions each holds, and which source each fetches from.

Called by the servicer of the weights service; limits how many replicas fetch from one source. Knows replicas
only by their reports: one that is silent for a lease is removed, and its slot is free. Knows nothing about
the wire format.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fairlead.errors import InvalidInput, Overloaded
from fairlead.types import WeightVersion
from fairlead.types.weights import ORIGIN, FailedSource, SourceFailure, WeightReplica

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.2
_AVOID_SECONDS = 10.0
"""How long a source that failed a replica is not assigned to that replica again."""


@dataclass(slots=True)
class _Known:
    """A replica as last reported."""

    replica: WeightReplica
    reported_at: float
    fetching: WeightVersion | None = None
    source: str | None = None
    """Relay address or ORIGIN that it fetches from; None if it does not fetch."""
    corrupt: set[WeightVersion] = field(default_factory=set)
    """Versions of which it has sent corrupt bytes."""
    avoids: dict[str, float] = field(default_factory=dict)
    """Source that failed it → time until which that source is not assigned to it."""


class Registry:
    """Assigns sources to replicas. Belongs to one event loop."""

    def __init__(
        self, *, fan_out: int, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            fan_out: how many replicas may fetch from one source at the same time.
            lease_seconds: how long a replica may be silent.
            clock: returns the time in seconds.
        """
        self._fan_out = fan_out
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def report(self, replica: WeightReplica) -> None:
        """Record that a replica is alive and which versions it holds.

        Raises:
            InvalidInput: if it has no ID.
        """
        self._update(replica)

    def find(
        self, replica: WeightReplica, version: WeightVersion, failed: Iterable[FailedSource] = ()
    ) -> str:
        """Assign a source of a version's bytes to a replica; return its relay address, or ORIGIN.

        Prefers replicas that hold the whole version, then the origin, then replicas that are fetching it
        themselves, nearest to the origin first; never one that itself depends on the caller.

        Args:
            replica: the caller.
            version: the version that it fetches.
            failed: sources that failed it.

        Raises:
            InvalidInput: if the replica has no ID.
            Overloaded: if no source has a free slot.
        """
        caller = self._update(replica)
        caller.fetching, caller.source = None, None
        for source in failed:
            self._record_failure(caller, source, version)
        best: tuple[int, int, str] | None = None
        if self._has_slot(ORIGIN) and not self._is_avoided(caller, ORIGIN):
            best = (1, 0, ORIGIN)
        for other in self._known.values():
            rank = self._rank(caller, other, version)
            if rank is not None and (best is None or rank < best):
                best = rank
        if best is None:
            raise Overloaded(
                f"all sources of weights {version} are in use", retry_after_seconds=_RETRY_SECONDS
            )
        caller.fetching, caller.source = version, best[2]
        return best[2]

    def _rank(self, caller: _Known, other: _Known, version: WeightVersion) -> tuple[int, int, str] | None:
        address = other.replica.relay_address
        if other is caller or not address or version in other.corrupt or self._is_avoided(caller, address):
            return None
        if not self._has_slot(address):
            return None
        if version in other.replica.versions:
            return (0, self._load(address), address)
        if other.fetching != version:
            return None
        depth = self._depth(other, caller)
        return None if depth is None else (2, depth, address)

    def _depth(self, other: _Known, caller: _Known) -> int | None:
        """Return the hops from a fetching replica to a complete source; None if `caller` is on that path."""
        by_address = {known.replica.relay_address: known for known in self._known.values()}
        depth = 1
        while other.source:
            upstream = by_address.get(other.source)
            if upstream is caller or depth > len(self._known):
                return None
            if upstream is None or upstream.source is None:
                break
            other = upstream
            depth += 1
        return depth

    def _update(self, replica: WeightReplica) -> _Known:
        if not replica.replica_id:
            raise InvalidInput("replica.replica_id", got="", allowed="an ID that no other replica uses")
        now = self._clock()
        for replica_id, known in list(self._known.items()):
            gone = known.reported_at + self._lease_seconds < now
            replaced = known.replica.relay_address == replica.relay_address != ""
            if replica_id != replica.replica_id and (gone or replaced):
                del self._known[replica_id]
        known = self._known.setdefault(replica.replica_id, _Known(replica, now))
        known.replica, known.reported_at = replica, now
        if known.fetching in replica.versions:
            known.fetching, known.source = None, None
        return known

    def _record_failure(self, caller: _Known, source: FailedSource, version: WeightVersion) -> None:
        now = self._clock()
        caller.avoids = {address: until for address, until in caller.avoids.items() if until > now}
        caller.avoids[source.relay_address] = now + _AVOID_SECONDS
        logger.warning(
            "source %s failed replica %s for weights %s: %s",
            source.relay_address or "the origin",
            caller.replica.relay_address or caller.replica.replica_id,
            version,
            source.failure.value,
        )
        if source.failure is SourceFailure.CORRUPT:
            for known in self._known.values():
                if known.replica.relay_address == source.relay_address != ORIGIN:
                    known.corrupt.add(version)

    def _is_avoided(self, caller: _Known, address: str) -> bool:
        # The origin is the last resort and is never avoided.
        return address != ORIGIN and caller.avoids.get(address, 0.0) > self._clock()

    def _has_slot(self, address: str) -> bool:
        return self._load(address) < self._fan_out

    def _load(self, address: str) -> int:
        now = self._clock()
        return sum(
            known.source == address and known.reported_at + self._lease_seconds >= now
            for known in self._known.values()
        )
