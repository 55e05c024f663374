"""A local hub with the endpoints that `datasets` and `transformers` use: available, gated and missing
datasets, and models.

Serves HTTP on a free port; HF_ENDPOINT, which the library reads on import, points to it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Repositories = dict[str, dict[str, bytes] | None]
"""Files by id; None for a gated one."""


@contextmanager
def hub(
    datasets: Repositories, *, models: Repositories | None = None, asked: list[str] | None = None
) -> Iterator[str]:
    """Serve datasets and models; yield the address. The paths of all requests are added to `asked`."""
    served = {"datasets": datasets, "models": models or {}}
    handler = type("Handler", (_Handler,), {"held": served, "paths": [] if asked is None else asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    held: Mapping[str, Repositories]
    paths: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.paths.append(self.path)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        if parts[0] not in self.held:
            parts = ["models", *parts]  # the files of models have no prefix
        name, rest = "/".join(parts[1:3]), parts[3:]
        if name not in self.held[parts[0]]:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif (files := self.held[parts[0]][name]) is None:
            self._refuse(403, "GatedRepo", f"Access to dataset {name} is restricted")
        elif api:
            self._describe(name, files, rest, body)
        elif rest[:1] == ["resolve"] and "/".join(rest[2:]) in files:
            content = files["/".join(rest[2:])]
            self._send(200, content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self._refuse(404, "EntryNotFound", "Entry not found")

    def _describe(self, name: str, files: dict[str, bytes], rest: list[str], body: bytes) -> None:
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": _digest(content)[:40]}
            for path, content in files.items()
        ]
        if rest[:1] == ["paths-info"]:
            wanted = json.loads(body)["paths"]
            self._json([entry for entry in entries if entry["path"] in wanted])
        elif rest[:1] == ["tree"]:
            inside = [entry for entry in entries if entry["path"].split("/")[:-1] == rest[2:]]
            folders = {path.split("/")[0] for path in files if "/" in path} if not rest[2:] else set()
            self._json([*inside, *({"type": "directory", "path": path, "oid": "0"} for path in folders)])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
