"""Who holds what, who fetches from whom, and from whom the next one fetches: the relay's bounded fan-out.

Behind the servicer. Knows replicas by what they tell; one that is not heard of for a lease is forgotten, and
its place is free. Knows no bytes and no wire.
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
_FORGIVEN_SECONDS = 10.0
"""A source that was broken for somebody is not given to the same one again for so long."""


@dataclass(slots=True)
class _Known:
    """One replica."""

    replica: WeightReplica
    heard_at: float
    fetching: WeightVersion | None = None
    source: str | None = None
    """Relay address that it fetches from, ORIGIN, or None."""
    corrupt: set[WeightVersion] = field(default_factory=set)
    """Versions of which it sent bytes that did not match."""
    avoids: dict[str, float] = field(default_factory=dict)
    """Sources that failed it, until when it is not sent there again."""


class Registry:
    """Hands out sources. Belongs to one event loop."""

    def __init__(
        self, *, fan_out: int, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`fan_out`: how many fetch from the origin, and from each replica, at the same time."""
        self._fan_out = fan_out
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def hear(self, replica: WeightReplica) -> None:
        """A replica says that it lives and what it holds.

        Raises:
            InvalidInput: if it has no name.
        """
        self._hear(replica)

    def find(
        self, replica: WeightReplica, version: WeightVersion, failed: Iterable[FailedSource] = ()
    ) -> str:
        """A place at a source of the version's bytes: relay address, or ORIGIN.

        Replicas that hold all of it come first, then the origin, then those that are fetching it themselves,
        nearest to the origin first; never one that depends on who asks.

        Raises:
            InvalidInput: if the replica has no name.
            Overloaded: if there is no free place now.
        """
        asks = self._hear(replica)
        asks.fetching, asks.source = None, None
        for source in failed:
            self._note(asks, source, version)
        best: tuple[int, int, str] | None = None
        if self._has_place(ORIGIN) and not self._is_avoided(asks, ORIGIN):
            best = (1, 0, ORIGIN)
        for other in self._known.values():
            rank = self._rank(asks, other, version)
            if rank is not None and (best is None or rank < best):
                best = rank
        if best is None:
            raise Overloaded(
                f"all sources of weights {version} are taken", retry_after_seconds=_RETRY_SECONDS
            )
        asks.fetching, asks.source = version, best[2]
        return best[2]

    def _rank(self, asks: _Known, other: _Known, version: WeightVersion) -> tuple[int, int, str] | None:
        address = other.replica.relay_address
        if other is asks or not address or version in other.corrupt or self._is_avoided(asks, address):
            return None
        if not self._has_place(address):
            return None
        if version in other.replica.versions:
            return (0, self._load(address), address)
        if other.fetching != version:
            return None
        depth = self._depth(other, asks)
        return None if depth is None else (2, depth, address)

    def _depth(self, other: _Known, asks: _Known) -> int | None:
        """Hops between a fetching replica and who holds all of it; None if `asks` is one of them."""
        by_address = {known.replica.relay_address: known for known in self._known.values()}
        depth = 1
        while other.source:
            upstream = by_address.get(other.source)
            if upstream is asks or depth > len(self._known):
                return None
            if upstream is None or upstream.source is None:
                break
            other = upstream
            depth += 1
        return depth

    def _hear(self, replica: WeightReplica) -> _Known:
        if not replica.replica_id:
            raise InvalidInput("replica.replica_id", got="", allowed="a name of its own")
        now = self._clock()
        for replica_id, known in list(self._known.items()):
            gone = known.heard_at + self._lease_seconds < now
            replaced = known.replica.relay_address == replica.relay_address != ""
            if replica_id != replica.replica_id and (gone or replaced):
                del self._known[replica_id]
        known = self._known.setdefault(replica.replica_id, _Known(replica, now))
        known.replica, known.heard_at = replica, now
        if known.fetching in replica.versions:
            known.fetching, known.source = None, None
        return known

    def _note(self, asks: _Known, source: FailedSource, version: WeightVersion) -> None:
        asks.avoids[source.relay_address] = self._clock() + _FORGIVEN_SECONDS
        logger.warning(
            "%s failed %s with weights %s: %s",
            source.relay_address or "the origin",
            asks.replica.relay_address or asks.replica.replica_id,
            version,
            source.failure.value,
        )
        if source.failure is SourceFailure.CORRUPT:
            for known in self._known.values():
                if known.replica.relay_address == source.relay_address != ORIGIN:
                    known.corrupt.add(version)

    def _is_avoided(self, asks: _Known, address: str) -> bool:
        # The origin is the last resort: it is asked again as soon as it answers.
        return address != ORIGIN and asks.avoids.get(address, 0.0) > self._clock()

    def _has_place(self, address: str) -> bool:
        return self._load(address) < self._fan_out

    def _load(self, address: str) -> int:
        now = self._clock()
        return sum(
            known.source == address and known.heard_at + self._lease_seconds >= now
            for known in self._known.values()
        )
