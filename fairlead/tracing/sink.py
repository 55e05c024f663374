"""A receiver of traces for one machine: OTLP over HTTP in, a file of JSON lines out.

For a look at a trace without Jaeger or Tempo. The file has the format of the OpenTelemetry collector's file
exporter, so `picture` reads both. Needs the extra `otel`.
"""

from __future__ import annotations

import base64
import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from fairlead.errors import ConfigError
from fairlead.tracing.setup import PATH

_MAX_BYTES = 64 << 20
_IDS = ("traceId", "spanId", "parentSpanId")
"""OTLP in JSON has them as hexadecimal numbers, unlike protobuf's JSON."""


@contextmanager
def receiving(file: Path, *, host: str, port: int) -> Iterator[str]:
    """Append the traces that arrive to a file, and give the address of the receiver.

    Args:
        file: created if it does not exist; one request on each line.
        host: address to listen on.
        port: 0 for any free one.

    Raises:
        ConfigError: if the port is in use.
        OSError: if the file cannot be written.
    """
    with file.open("a", encoding="utf-8") as lines:
        lock = threading.Lock()

        class Handler(_Handler):
            def keep(self, request: dict[str, Any]) -> None:
                with lock:
                    lines.write(json.dumps(request, separators=(",", ":")) + "\n")
                    lines.flush()

        try:
            server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigError(
                "--listen", got=f"{host}:{port} ({error.strerror})", allowed="a free port of this machine"
            ) from error
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="traces", daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    timeout = 10.0

    def keep(self, request: dict[str, Any]) -> None:
        """Write a request down."""
        raise NotImplementedError

    def do_POST(self) -> None:
        """Take one export."""
        if self.path != PATH:
            self._answer(404, f"not found: POST {PATH}".encode(), "text/plain")
            return
        if self.headers.get_content_type() != "application/x-protobuf":
            self._answer(415, b"allowed: application/x-protobuf", "text/plain")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_BYTES:
            self._answer(413, f"allowed: a Content-Length of at most {_MAX_BYTES}".encode(), "text/plain")
            return
        body = self.rfile.read(int(length))
        try:
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            elif self.headers.get("Content-Encoding") == "deflate":
                body = zlib.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
        except (DecodeError, OSError, EOFError, zlib.error):
            self._answer(400, b"got a body that is not an ExportTraceServiceRequest", "text/plain")
            return
        self.keep(_with_hexadecimal_ids(MessageToDict(request)))
        self._answer(200, ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _with_hexadecimal_ids(content: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(content, list):
        return [_with_hexadecimal_ids(each) for each in content]
    if not isinstance(content, dict):
        return content
    return {
        key: base64.b64decode(value).hex() if key in _IDS else _with_hexadecimal_ids(value)
        for key, value in content.items()
    }
