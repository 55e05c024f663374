"""A backend of traces that keeps what it receives without a look at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Received = tuple[str, dict[str, str], bytes]
"""Path, headers by their names in lower case, and body of a request."""


@contextmanager
def backend(*statuses: int) -> Iterator[tuple[str, Sequence[Received]]]:
    """Answer each request with the next status, and the last one from then on; give address and requests."""
    found: list[Received] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.append((self.path, {name.lower(): text for name, text in self.headers.items()}, body))
            self.send_response(statuses[min(len(found), len(statuses)) - 1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
