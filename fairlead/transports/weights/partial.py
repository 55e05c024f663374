"""A version that is being fetched: bytes are written as they come and verified piece by piece.

What has been verified survives a cut, another source and a restart; what has not is fetched again. Beneath
the cache; knows no wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from fairlead.errors import CorruptWeights, Unavailable
from fairlead.transports.weights import disk
from fairlead.transports.weights import manifest as manifests
from fairlead.transports.weights.base import Manifest, Shard
from fairlead.transports.weights.direct import in_thread
from fairlead.transports.weights.pieces import layout, verified_bytes
from fairlead.transports.weights.shelf import Progress

_BLOCK_BYTES = 4 << 20
"""Written and hashed at a time, while the next block is received."""
_DIRECT_BLOCK_BYTES = 1 << 20
"""The same, where one thread does all three: it stays in the processor's cache."""


class PartialShard:
    """One shard on its way in."""

    def __init__(self, path: Path, shard: Shard) -> None:
        """Goes on behind what an earlier attempt left and still matches."""
        self.shard = shard
        self._path = path
        self._piece_bytes, self._digests, self._new_digest = layout(shard)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._position = verified_bytes(path, shard)
        # Not without need: ext4 writes a file that was truncated to the disk when it is closed.
        if os.fstat(self._file).st_size > self._position:
            os.ftruncate(self._file, self._position)
        self.progress = Progress(self._position)
        self._hash = self._new_digest()
        self._blocks: list[memoryview] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    @property
    def verified_bytes(self) -> int:
        """How much is there and verified, from the start."""
        return self.progress.verified_bytes

    @property
    def complete(self) -> bool:
        """Whether all of it is."""
        return self.verified_bytes == self.shard.size_bytes

    async def write(self, data: bytes) -> None:
        """The next bytes, in order. A full block is written while the caller receives more.

        Raises:
            CorruptWeights: if a piece does not match; all behind the last that did is dropped.
            OutOfSpace, ReadOnlyDisk: if it cannot be written.
        """
        view = memoryview(data)
        while view:
            if self._position == self.shard.size_bytes:
                raise CorruptWeights(f"{self._path} gets more than its {self.shard.size_bytes} bytes")
            part = view[: self._piece_end() - self._position]
            view = view[len(part) :]
            self._blocks.append(part)
            self._waiting_bytes += len(part)
            self._position += len(part)
            ends_piece = self._ends_piece()
            if ends_piece or self._waiting_bytes >= _BLOCK_BYTES:
                await self._flush(ends_piece=ends_piece)

    async def receive(self, connection: socket.socket, count: Callable[[int], None]) -> None:
        """The next bytes, as many as come from a connection, in one thread that also hashes and writes them.

        Args:
            connection: whose timeout is how long a silence may last.
            count: told in that thread how many bytes have come.

        Raises:
            CorruptWeights: if a piece does not match.
            OutOfSpace, ReadOnlyDisk: if it cannot be written.
            Unavailable: if the connection breaks, falls silent, or brings nothing at all.
        """
        loop = asyncio.get_running_loop()
        await in_thread(connection, lambda: self._receive(connection, count, loop))

    async def settle(self) -> None:
        """Waits until every whole piece that came has been verified; raises as `write`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def rewind(self) -> None:
        """Drops what came behind the last verified piece; the next bytes are those behind it."""
        with contextlib.suppress(Exception):
            await self.settle()
        self._position = self.verified_bytes
        self._blocks, self._waiting_bytes, self._hash = [], 0, self._new_digest()

    def close(self) -> None:
        """Closes the file; whoever waits for more is told that nothing comes."""
        self.progress.close()
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
        self._writing = asyncio.create_task(self._settle_block(blocks, begin, ends_piece=ends_piece))

    async def _settle_block(self, blocks: list[memoryview], begin: int, *, ends_piece: bool) -> None:
        end = await asyncio.to_thread(self._append, blocks, begin, ends_piece)
        if ends_piece:
            self.progress.advance(end)

    def _receive(
        self, connection: socket.socket, count: Callable[[int], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        buffer, first = memoryview(bytearray(_DIRECT_BLOCK_BYTES)), self._position
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
                loop.call_soon_threadsafe(self.progress.advance, self._position)
        if self._position == first:
            raise Unavailable("the direct connection brought nothing")

    def _append(self, blocks: list[memoryview], offset: int, ends_piece: bool) -> int:
        """Writes and hashes, and at the end of a piece verifies. Returns the offset behind the blocks."""
        with disk.faults_named(self._path.parent, self._path.name):
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
            raise CorruptWeights(f"{self._path}: bytes up to {offset} do not match their digest")
        return offset


def _fill(block: memoryview, connection: socket.socket) -> int:
    """Reads until the block is full or the sender ends. Returns how much came."""
    filled = 0
    try:
        while filled < len(block) and (count := connection.recv_into(block[filled:])):
            filled += count
    except OSError as error:
        raise Unavailable(f"the direct connection broke: {error}") from error
    return filled


class Partial:
    """All shards of one version on their way in."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Reads what an earlier attempt left: takes as long as hashing it."""
        self.folder = folder
        self.manifest = manifest
        with disk.faults_named(folder.parent, f"weights {manifest.version}"):
            folder.mkdir(parents=True, exist_ok=True)
            names = {shard.name for shard in manifest.shards}
            for path in folder.iterdir():
                if path.name not in names:
                    path.unlink()
            self.shards = {shard.name: PartialShard(folder / shard.name, shard) for shard in manifest.shards}

    @property
    def missing_bytes(self) -> int:
        """What is still to come."""
        return sum(each.shard.size_bytes - each.verified_bytes for each in self.shards.values())

    def finish(self) -> None:
        """Writes the manifest beside the shards, which are all complete.

        Raises:
            CorruptWeights: if they hold other tensors than the manifest says.
        """
        manifests.check_tensors(self.folder, self.manifest)
        with disk.faults_named(self.folder, manifests.FILE_NAME):
            (self.folder / manifests.FILE_NAME).write_bytes(manifests.encode(self.manifest))

    def close(self) -> None:
        """Closes the files."""
        for shard in self.shards.values():
            shard.close()
