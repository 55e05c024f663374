"""A version that is being fetched: its bytes are written as they arrive and verified piece by piece.

Verified pieces survive a broken connection, a change of the source and a restart; the rest is fetched again.
Used by the cache and by downloads; knows nothing about the wire format.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from fairlead.errors import CorruptWeights, Unavailable
from fairlead.transports.weights import disk
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.base import Manifest, Shard, VerifiedLength
from fairlead.transports.weights.direct import DirectConnection
from fairlead.transports.weights.manifest import piece_layout, verified_prefix_bytes

_BLOCK_BYTES = 4 << 20
"""Bytes written and hashed at a time, while the next block is received."""
_DIRECT_BLOCK_BYTES = 1 << 20
"""The same, where one thread receives, hashes and writes: a block stays in the processor's cache."""


class PartialShard:
    """One shard that is being fetched."""

    def __init__(self, path: Path, shard: Shard) -> None:
        """Keep the pieces of an earlier attempt that match the shard."""
        self.shard = shard
        self._path = path
        self._piece_bytes, self._digests, self._new_digest = piece_layout(shard)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._position = verified_prefix_bytes(path, shard)
        # Only if needed: ext4 flushes a truncated file to the disk when it is closed.
        if os.fstat(self._file).st_size > self._position:
            os.ftruncate(self._file, self._position)
        self.verified = VerifiedLength(self._position)
        self._hash = self._new_digest()
        self._blocks: list[memoryview] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        self._use = threading.Lock()
        """Held while a thread writes: a fetch that is cancelled does not end its thread, and the number of a
        closed file may become that of another one."""

    @property
    def verified_bytes(self) -> int:
        """Bytes from the start of the shard that are written and verified."""
        return self.verified.verified_bytes

    @property
    def complete(self) -> bool:
        """Whether the whole shard is written and verified."""
        return self.verified_bytes == self.shard.size_bytes

    async def write(self, data: bytes) -> None:
        """Append the next bytes. A full block is written while the caller receives more.

        Raises:
            CorruptWeights: if a piece does not match its digest; everything after the last good piece is
                dropped.
            OutOfSpace, ReadOnlyDisk: if the file cannot be written.
        """
        view = memoryview(data)
        while view:
            if self._position == self.shard.size_bytes:
                raise CorruptWeights(f"{self._path}: received more than its {self.shard.size_bytes} bytes")
            part = view[: self._piece_end() - self._position]
            view = view[len(part) :]
            self._blocks.append(part)
            self._waiting_bytes += len(part)
            self._position += len(part)
            ends_piece = self._ends_piece()
            if ends_piece or self._waiting_bytes >= _BLOCK_BYTES:
                await self._flush(ends_piece=ends_piece)

    async def receive(self, connection: DirectConnection, count: Callable[[int], None]) -> None:
        """Append all bytes that arrive on a connection; one thread receives, hashes and writes them.

        Args:
            connection: its timeout limits how long the sender may be silent.
            count: called in that thread with the number of bytes of each block.

        Raises:
            CorruptWeights: if a piece does not match its digest.
            OutOfSpace, ReadOnlyDisk: if the file cannot be written.
            Unavailable: if the connection breaks, times out, or ends without a byte.
        """
        loop = asyncio.get_running_loop()
        await connection.run(lambda: self._receive(connection.socket, count, loop))

    async def settle(self) -> None:
        """Wait until every complete piece is verified.

        Raises:
            CorruptWeights, OutOfSpace, ReadOnlyDisk: as `write`.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def rewind(self) -> None:
        """Drop everything after the last verified piece; the next bytes must follow that piece."""
        with contextlib.suppress(Exception):
            await self.settle()
        self._position = self.verified_bytes
        self._blocks = []
        self._waiting_bytes = 0
        self._hash = self._new_digest()

    def close(self) -> None:
        """Close the file, after the block that is being written; readers stop waiting for more bytes."""
        self.verified.close()
        with self._use:
            self._closed = True
            os.close(self._file)

    def _ends_piece(self) -> bool:
        return self._position % self._piece_bytes == 0 or self._position == self.shard.size_bytes

    def _piece_end(self) -> int:
        begin = self._position - self._position % self._piece_bytes
        return min(begin + self._piece_bytes, self.shard.size_bytes)

    async def _flush(self, *, ends_piece: bool) -> None:
        await self.settle()
        blocks, self._blocks = self._blocks, []
        begin = self._position - self._waiting_bytes
        self._waiting_bytes = 0
        self._writing = asyncio.create_task(self._write_blocks(blocks, begin, ends_piece=ends_piece))

    async def _write_blocks(self, blocks: list[memoryview], begin: int, *, ends_piece: bool) -> None:
        end = await asyncio.to_thread(self._append, blocks, begin, ends_piece)
        if ends_piece:
            self.verified.advance(end)

    def _receive(
        self, connection: socket.socket, count: Callable[[int], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        buffer = memoryview(bytearray(_DIRECT_BLOCK_BYTES))
        first = self._position
        while self._position < self.shard.size_bytes:
            begin = self._position
            block = buffer[: self._piece_end() - begin]
            block = block[: _fill(block, connection)]
            if not block:
                break
            count(len(block))
            self._position += len(block)
            ends_piece = self._ends_piece()
            self._append([block], begin, ends_piece)
            if ends_piece:
                loop.call_soon_threadsafe(self.verified.advance, self._position)
        if self._position == first:
            raise Unavailable("the direct connection closed before it sent any data")

    def _append(self, blocks: list[memoryview], offset: int, ends_piece: bool) -> int:
        """Write and hash blocks; verify a piece at its end. Return the offset after the blocks.

        Raises:
            ValueError: if the file is closed.
        """
        with self._use, disk.named_disk_errors(self._path.parent, self._path.name):
            if self._closed:
                raise ValueError(f"{self._path} is closed")
            if offset % self._piece_bytes == 0:
                disk.reserve(self._file, offset, min(self._piece_bytes, self.shard.size_bytes - offset))
            for block in blocks:
                self._hash.update(block)
                done = 0
                while done < len(block):
                    done += os.pwrite(self._file, block[done:], offset + done)
                offset += len(block)
        if not ends_piece:
            return offset
        found, self._hash = self._hash.hexdigest(), self._new_digest()
        number = (offset - 1) // self._piece_bytes
        if found != self._digests[number]:
            raise CorruptWeights(f"{self._path}: the piece that ends at byte {offset} has the wrong digest")
        return offset


def _fill(block: memoryview, connection: socket.socket) -> int:
    """Read until the block is full or the sender closes. Return the number of bytes read."""
    filled = 0
    try:
        while filled < len(block) and (count := connection.recv_into(block[filled:])):
            filled += count
    except OSError as error:
        raise Unavailable(f"the direct connection broke: {error}") from error
    return filled


class PartialVersion:
    """All shards of one version that is being fetched."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Verify what an earlier attempt has fetched, which takes as long as hashing it."""
        self.folder = folder
        self.manifest = manifest
        with disk.named_disk_errors(folder.parent, f"weights {manifest.version}"):
            folder.mkdir(parents=True, exist_ok=True)
            names = {shard.name for shard in manifest.shards}
            for path in folder.iterdir():
                if path.name not in names:
                    path.unlink()
            self.shards = {shard.name: PartialShard(folder / shard.name, shard) for shard in manifest.shards}

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not fetched and verified yet."""
        return sum(each.shard.size_bytes - each.verified_bytes for each in self.shards.values())

    def finish(self) -> None:
        """Write the manifest next to the shards, which must be complete.

        Raises:
            CorruptWeights: if the shards contain other tensors than the manifest lists.
        """
        manifests.check_tensors(self.folder, self.manifest)
        with disk.named_disk_errors(self.folder, manifests.FILE_NAME):
            (self.folder / manifests.FILE_NAME).write_bytes(manifests.encode(self.manifest))

    def close(self) -> None:
        """Close the files."""
        for shard in self.shards.values():
            shard.close()
