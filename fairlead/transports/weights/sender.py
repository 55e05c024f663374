"""Sends the bytes of shards: the wire side of a shelf, the same for the origin and for replicas that relay.

Called by the servicers. Bounds how many it serves at the same time and, if asked, how fast.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator

from fairlead import codec, metrics
from fairlead.config.infrastructure import WeightsSection
from fairlead.errors import InvalidInput, Overloaded, Unavailable
from fairlead.transports.weights.direct import DirectPort, Place
from fairlead.transports.weights.shelf import OpenShard, Shelf
from fairlead.v1 import weight_service_pb2 as pb

_RETRY_SECONDS = 0.2
_BLOCK_BYTES = 4 << 20
"""Read at a time: a hop to another thread for every message would cost more than the reading."""
_DIRECT_BYTES = 8 << 20
"""Sent in one go of a thread, where no rate is asked for."""


CHUNK_BYTES = 256 << 10
"""Bytes of a shard in one message; gRPC accepts 4 MiB by default."""


class Sender:
    """Of one shelf. Belongs to one event loop."""

    def __init__(
        self,
        shelf: Shelf,
        section: WeightsSection,
        counts: metrics.WeightsMetrics,
        *,
        direct: DirectPort | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """`direct` is offered to those who ask for it; None offers nothing."""
        self._shelf = shelf
        self._direct = direct
        self._chunk_bytes = chunk_bytes
        # A fetcher that comes back after a cut finds a place although its old stream has not ended yet.
        self._max_streams = 2 * section.relay_fan_out
        self._patience_seconds = section.stall_seconds / 2
        self._pace = _Pace(section.max_send_bytes_per_second)
        self._counts = counts
        self._streams = 0

    async def send(self, request: pb.FetchShardRequest) -> AsyncGenerator[pb.FetchShardResponse]:
        """The bytes asked for, in chunks; of a shard that is still being fetched, as they are verified.

        Or an offer, and the end once the bytes have gone over a connection of their own.

        Raises:
            InvalidInput: for an offset or a limit that makes no sense.
            NotFound: if the version is not here.
            Overloaded: if as many are served as may be.
            Unavailable: if a shard that is still being fetched does not go on.
        """
        if request.limit_bytes < 1:
            raise InvalidInput("limit_bytes", got=request.limit_bytes, allowed="1 or more")
        if self._streams >= self._max_streams:
            raise Overloaded(
                f"{self._streams} fetch from here, as many as may", retry_after_seconds=_RETRY_SECONDS
            )
        self._streams += 1
        self._counts.relay_connections.inc()
        try:
            shard = self._shelf.open(codec.version_from_pb(request.version), request.shard)
            try:
                offset = request.offset_bytes
                if not 0 <= offset <= shard.size_bytes:
                    raise InvalidInput("offset_bytes", got=offset, allowed=f"from 0 to {shard.size_bytes}")
                end = min(shard.size_bytes, offset + request.limit_bytes)
                if request.direct and self._direct is not None and offset < end:
                    with self._direct.place() as place:
                        yield pb.FetchShardResponse(direct=codec.direct_offer_to_pb(place.offer))
                        await self._send_directly(place, shard, offset, end)
                    return
                async for data in self._chunks(shard, offset, end):
                    yield pb.FetchShardResponse(data=data)
            finally:
                shard.close()
        finally:
            self._streams -= 1
            self._counts.relay_connections.dec()

    async def _send_directly(self, place: Place, shard: OpenShard, offset: int, end: int) -> None:
        """To whoever comes for it, without a hop to the loop for every message."""
        block_bytes = self._chunk_bytes if self._pace.limited else _DIRECT_BYTES
        await place.taken()
        while offset < end:
            length = min(block_bytes, await self._there(shard, offset, end) - offset)
            await self._pace.take(length)
            sent = await place.send(shard.descriptor, offset, length)
            self._counts.sent_bytes.inc(sent)
            offset += sent
            if sent < length:
                raise _ends_early(shard, offset)

    async def _chunks(self, shard: OpenShard, offset: int, end: int) -> AsyncIterator[bytes]:
        block = asyncio.create_task(self._block(shard, offset, end))
        try:
            while data := await block:
                offset += len(data)
                block = asyncio.create_task(self._block(shard, offset, end))
                for begin in range(0, len(data), self._chunk_bytes):
                    chunk = bytes(data[begin : begin + self._chunk_bytes])
                    await self._pace.take(len(chunk))
                    self._counts.sent_bytes.inc(len(chunk))
                    yield chunk
        finally:
            block.cancel()
            await asyncio.gather(block, return_exceptions=True)

    async def _block(self, shard: OpenShard, offset: int, end: int) -> memoryview:
        """The next bytes, read while those before them are sent; none at the end."""
        if offset == end:
            return memoryview(b"")
        length = min(_BLOCK_BYTES, await self._there(shard, offset, end) - offset)
        data = await asyncio.to_thread(os.pread, shard.descriptor, length, offset)
        if len(data) < length:
            raise _ends_early(shard, offset + len(data))
        return memoryview(data)

    async def _there(self, shard: OpenShard, offset: int, end: int) -> int:
        """Up to where, beyond `offset`, there is something to send; waited for while it is being fetched."""
        if shard.progress is None:
            return end
        there = await shard.progress.wait_beyond(offset, timeout_seconds=self._patience_seconds)
        if there <= offset:
            raise Unavailable(f"the fetch of this shard stands at {there} bytes here")
        return min(there, end)


def _ends_early(shard: OpenShard, offset: int) -> Unavailable:
    return Unavailable(f"the shard ends at {offset} bytes of {shard.size_bytes} here")


class _Pace:
    """A token bucket of a tenth of a second, over all streams."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a rate."""
        return self._rate > 0

    async def take(self, length: int) -> None:
        """Waits until so many bytes may go."""
        if not self._rate:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 0.1) + length / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
