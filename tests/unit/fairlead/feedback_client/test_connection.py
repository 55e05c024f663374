"""How a connection finds the feedback service for the first time, and finds it again."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fairlead.errors import NotFound, Stalled
from fairlead.feedback_client.connection import Connection
from tests.unit.fairlead.rpc.rpc_world import dead_address


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request with JSON and closes the connection."""

    def do_GET(self) -> None:
        found = self.path == "/here"
        body = b'{"found": true}' if found else b"<html>another service</html>"
        self.send_response(200 if found else 404)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@contextmanager
def serving(port: int) -> Iterator[None]:
    with http.server.HTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_address_where_nothing_answers_is_given_up_long_before_the_deadline() -> None:
    connection = Connection(dead_address(), api_key="", timeout_seconds=600, first_connect_seconds=0.2)
    with pytest.raises(Stalled, match=r"nothing answers at 127\.0\.0\.1:\d+: .*refused; check the address"):
        connection.request("GET", "/here")


def test_service_that_starts_meanwhile_is_found_and_a_closed_connection_opened_again() -> None:
    address = dead_address()
    connection = Connection(address, api_key="", timeout_seconds=60, first_connect_seconds=30)
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.append(connection.request("GET", "/here").json))
    asking.start()
    time.sleep(0.3)
    with serving(int(address.rpartition(":")[2])):
        asking.join()
        assert found == [{"found": True}]
        assert connection.request("GET", "/here").json == {"found": True}
        with pytest.raises(NotFound, match="HTTP status 404, not from a feedback service: check the address"):
            connection.request("GET", "/elsewhere")
    connection.close()
