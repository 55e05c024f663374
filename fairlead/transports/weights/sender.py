"""Sends the bytes of shards over the wire, for the weights service and for replicas that relay.

Called by the servicers; reads from a ShardStore. Limits how many transfers run at once and, if configured,
their rate.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator

from fairlead import codec, metrics
from fairlead.config.infrastructure import WeightsSection
from fairlead.errors import InvalidInput, Overloaded, Unavailable
from fairlead.transports.weights.base import OpenShard, ShardStore
from fairlead.transports.weights.direct_port import DirectPort, DirectTransfer
from fairlead.v1 import weight_service_pb2 as pb

_RETRY_SECONDS = 0.2
_BLOCK_BYTES = 4 << 20
"""Bytes read at a time: a switch of threads per message would cost more than reading it."""
_DIRECT_BYTES = 8 << 20
"""Bytes that a thread sends at a time over a direct connection without a rate limit."""


class Sender:
    """Sends the shards of one store. Belongs to one event loop."""

    def __init__(
        self,
        store: ShardStore,
        section: WeightsSection,
        weights_metrics: metrics.WeightsMetrics,
        *,
        direct: DirectPort | None = None,
    ) -> None:
        """`direct`: port that is offered to receivers that ask for it; None to send only over gRPC."""
        self._store = store
        self._direct = direct
        self._chunk_bytes = section.chunk_bytes
        # Twice the fan-out: a receiver that reconnects must not be refused while its old stream is ending.
        self._max_transfers = 2 * section.relay_fan_out
        self._wait_seconds = section.stall_seconds / 2
        self._rate_limit = _RateLimit(section.max_send_bytes_per_second)
        self._metrics = weights_metrics
        self._transfers = 0

    async def send(self, request: pb.FetchShardRequest) -> AsyncGenerator[pb.FetchShardResponse]:
        """Yield the requested bytes in chunks. Bytes of a shard that is being fetched follow once verified.

        If a direct connection is offered, yield only the offer, and return when the transfer has ended.

        Raises:
            InvalidInput: if offset or limit is out of range.
            NotFound: if the store does not have the version or the shard.
            Overloaded: if the maximum number of transfers is running.
            Unavailable: if the fetch of a shard that is still incomplete makes no progress.
        """
        if request.limit_bytes < 1:
            raise InvalidInput("limit_bytes", got=request.limit_bytes, allowed="1 or more")
        if self._transfers >= self._max_transfers:
            raise Overloaded(
                f"{self._transfers} transfers are running, the maximum", retry_after_seconds=_RETRY_SECONDS
            )
        self._transfers += 1
        self._metrics.relay_connections.inc()
        try:
            shard = self._store.open(codec.version_from_pb(request.version), request.shard)
            try:
                offset = request.offset_bytes
                if not 0 <= offset <= shard.size_bytes:
                    raise InvalidInput("offset_bytes", got=offset, allowed=f"from 0 to {shard.size_bytes}")
                end = min(shard.size_bytes, offset + request.limit_bytes)
                if request.direct and self._direct is not None and offset < end:
                    with self._direct.transfer() as transfer:
                        yield pb.FetchShardResponse(direct=codec.direct_offer_to_pb(transfer.offer))
                        await self._send_directly(transfer, shard, offset, end)
                    return
                async for data in self._chunks(shard, offset, end):
                    yield pb.FetchShardResponse(data=data)
            finally:
                shard.close()
        finally:
            self._transfers -= 1
            self._metrics.relay_connections.dec()

    async def _send_directly(self, transfer: DirectTransfer, shard: OpenShard, offset: int, end: int) -> None:
        """Send from a thread, without a hop to the event loop for every message."""
        block_bytes = self._chunk_bytes if self._rate_limit.enabled else _DIRECT_BYTES
        await transfer.wait_connected()
        while offset < end:
            length = min(block_bytes, await self._available_end(shard, offset, end) - offset)
            await self._rate_limit.wait(length)
            sent = await transfer.send(shard.descriptor, offset, length)
            self._metrics.sent_bytes.inc(sent)
            offset += sent
            if sent < length:
                raise _truncated(shard, offset)

    async def _chunks(self, shard: OpenShard, offset: int, end: int) -> AsyncIterator[bytes]:
        block = asyncio.create_task(self._block(shard, offset, end))
        try:
            while data := await block:
                offset += len(data)
                block = asyncio.create_task(self._block(shard, offset, end))
                for begin in range(0, len(data), self._chunk_bytes):
                    chunk = bytes(data[begin : begin + self._chunk_bytes])
                    await self._rate_limit.wait(len(chunk))
                    self._metrics.sent_bytes.inc(len(chunk))
                    yield chunk
        finally:
            block.cancel()
            await asyncio.gather(block, return_exceptions=True)

    async def _block(self, shard: OpenShard, offset: int, end: int) -> memoryview:
        """Read the next bytes, while those before them are sent. Empty at the end."""
        if offset == end:
            return memoryview(b"")
        length = min(_BLOCK_BYTES, await self._available_end(shard, offset, end) - offset)
        data = await asyncio.to_thread(os.pread, shard.descriptor, length, offset)
        if len(data) < length:
            raise _truncated(shard, offset + len(data))
        return memoryview(data)

    async def _available_end(self, shard: OpenShard, offset: int, end: int) -> int:
        """Return up to where the shard can be sent, at most `end`; wait until that is beyond `offset`."""
        if shard.verified is None:
            return end
        verified = await shard.verified.wait_beyond(offset, timeout_seconds=self._wait_seconds)
        if verified <= offset:
            raise Unavailable(f"the fetch of this shard makes no progress after {verified} bytes")
        return min(verified, end)


def _truncated(shard: OpenShard, offset: int) -> Unavailable:
    return Unavailable(f"the file of this shard ends at byte {offset} of {shard.size_bytes}")


class _RateLimit:
    """A token bucket of 0.1 s over all transfers."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    @property
    def enabled(self) -> bool:
        """Whether a rate is configured."""
        return self._rate > 0

    async def wait(self, length: int) -> None:
        """Wait until `length` bytes may be sent."""
        if not self._rate:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 0.1) + length / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
