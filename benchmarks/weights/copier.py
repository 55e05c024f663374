"""What the weight path is compared with: files read, sent over TCP on the loopback, and written, no more."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

_BLOCK_BYTES = 1 << 20


def send(folder: Path) -> None:
    """Answers each line with a port, at which the next who connects gets every shard."""
    while sys.stdin.readline():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            _say({"port": listener.getsockname()[1]})
            connection, _ = listener.accept()
            with connection:
                for path in sorted(folder.glob("*.safetensors")):
                    with path.open("rb") as file:
                        while block := file.read(_BLOCK_BYTES):
                            connection.sendall(block)


def receive(target: Path) -> None:
    """Answers each line, a port, with the seconds that the copy took."""
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    while line := sys.stdin.readline():
        target.unlink(missing_ok=True)
        start = time.perf_counter()
        with socket.create_connection(("127.0.0.1", int(line))) as connection, target.open("wb") as file:
            while count := connection.recv_into(buffer):
                file.write(buffer[:count])
        _say({"seconds": time.perf_counter() - start})


def _say(answer: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"send": send, "receive": receive}[sys.argv[1]](Path(sys.argv[2]))
