"""The baseline of the weight path: files are read, sent over the loopback and written, nothing else.

Once over plain TCP, the limit of the machine, and once as a plain stream of gRPC messages, the limit of a
service in Python.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

_BLOCK_BYTES = 1 << 20
_MESSAGE_BYTES = 256 << 10
_METHOD = "/benchmarks.Copy/Stream"


def send(folder: Path) -> None:
    """Answer each line with a port; the next client that connects receives every shard."""
    while sys.stdin.readline():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            _say({"port": listener.getsockname()[1]})
            connection, _ = listener.accept()
            with connection:
                for block in _blocks(folder, _BLOCK_BYTES):
                    connection.sendall(block)


def receive(target: Path) -> None:
    """Answer each line, a port, with the seconds of the copy."""
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    while line := sys.stdin.readline():
        target.unlink(missing_ok=True)
        start = time.perf_counter()
        with socket.create_connection(("127.0.0.1", int(line))) as connection, target.open("wb") as file:
            while count := connection.recv_into(buffer):
                file.write(buffer[:count])
        _say({"seconds": time.perf_counter() - start})


async def send_messages(folder: Path) -> None:
    """Answer each line with the port of a gRPC server that streams every shard."""

    async def stream(request: bytes, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        for block in _blocks(folder, _MESSAGE_BYTES):
            yield block

    server = aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(stream)
    service, method = _METHOD[1:].split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        while await asyncio.to_thread(sys.stdin.readline):
            _say({"port": port})
    finally:
        await server.stop(None)


async def receive_messages(target: Path) -> None:
    """Answer each line, a port, with the seconds of the copy."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        await asyncio.to_thread(target.unlink, missing_ok=True)
        async with aio.insecure_channel(f"127.0.0.1:{int(line)}") as channel:
            await channel.channel_ready()
            start = time.perf_counter()
            ask: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_METHOD)
            with target.open("wb") as file:
                async for block in ask(b""):
                    file.write(block)
            _say({"seconds": time.perf_counter() - start})


def _blocks(folder: Path, size: int) -> Iterator[bytes]:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(size):
                yield block


def _say(answer: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    place = Path(sys.argv[2])
    match sys.argv[1]:
        case "send":
            send(place)
        case "receive":
            receive(place)
        case "send-messages":
            asyncio.run(send_messages(place))
        case "receive-messages":
            asyncio.run(receive_messages(place))
