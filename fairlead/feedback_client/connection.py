"""One HTTP connection to the feedback service: JSON in and out, errors as ours, retries while it is away."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fairlead.backoff import Backoff, retry_blocking
from fairlead.errors import (
    ConfigError,
    Conflict,
    CorruptData,
    DeadlineExceeded,
    FairleadError,
    InternalError,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    RemoteInvalidInput,
    Stalled,
    Unauthenticated,
    Unavailable,
)
from fairlead.rpc.credentials import Credentials
from fairlead.rpc.tls import Certificates, TlsFiles

_BACKOFF = Backoff(first_seconds=0.05, longest_seconds=2.0)
_ERRORS: Mapping[int, type[FairleadError]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    503: Unavailable,
    504: DeadlineExceeded,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The response to one request."""

    status: int
    """HTTP status."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    """As received."""

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON may be anything
        """The body as JSON.

        Raises:
            CorruptData: it is not JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise CorruptData(f"the response is not JSON: {self.body[:200]!r}") from None


class Connection:
    """A connection that is opened when it is needed, and again when it breaks. For one thread."""

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: TlsFiles | None = None,
        allow_insecure: bool = False,
        timeout_seconds: float = 60.0,
        first_connect_seconds: float | None = None,
    ) -> None:
        """
        Args:
            address: `host:port`, or a URL such as `https://feedback.example.com/people`.
            api_key: the key; None for FAIRLEAD_API_KEY of the environment, "" for no key.
            tls: certificates, such as `[tls]` of a run; an address that begins with `https:` needs none.
            allow_insecure: allow sending the key to other machines in plain text.
            timeout_seconds: deadline of a request with its retries.
            first_connect_seconds: how long to try to connect for the first time, since the address may be
                wrong; None for the time of the request.

        Raises:
            ConfigError: the address is invalid, or a key would be sent in plain text.
        """
        text = address if "://" in address else f"http://{address}"
        try:
            url = urlsplit(text)
            host, port = url.hostname or "", url.port
        except ValueError:
            host, port = "", None
        if not host or url.scheme not in ("http", "https"):
            raise ConfigError("address", got=address, allowed="host:port, or an http or https URL")
        self._context: ssl.SSLContext | None = None
        if tls is not None and tls.on:
            self._context = Certificates(tls).client_context()
        elif url.scheme == "https":
            self._context = ssl.create_default_context()
        self._host, self._port = host, port or (443 if self._context else 80)
        self._prefix = url.path.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._first_connect_seconds = first_connect_seconds
        self._connect_until: float | None = None
        secure = allow_insecure or self._context is not None
        credentials = Credentials([f"{host}:{self._port}"], api_key=api_key, allow_insecure=secure)
        self.headers = dict(credentials.metadata or ())
        """Headers of every request."""
        self.address = f"{host}:{self._port}"
        """For messages."""
        self._open: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def request(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request that may be repeated, and return its response.

        It is sent again after a lost connection and when the service asks for it, until the deadline.

        Raises:
            InvalidInput: the service refuses a field; names it.
            FairleadError: Unauthenticated, PermissionDenied, NotFound, Conflict …, as the service says.
            Unavailable, Overloaded, DeadlineExceeded: until the deadline.
            Stalled: nothing answers at the address within `first_connect_seconds`.
        """
        data = None if body is None else json.dumps(body).encode()
        sent = {**self.headers, **(headers or {})}
        if data is not None:
            sent["content-type"] = "application/json"
        deadline = time.monotonic() + self._timeout_seconds
        if self._first_connect_seconds is not None:
            self._connect_until = time.monotonic() + self._first_connect_seconds
        return retry_blocking(
            lambda: self._once(method, path, data, sent, deadline),
            what=f"the feedback service at {self.address}",
            backoff=_BACKOFF,
            deadline=deadline,
        )

    def _once(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], deadline: float
    ) -> Reply:
        left = max(0.1, deadline - time.monotonic())
        try:
            reply = self._exchange(method, path, data, headers, left)
        except TimeoutError:
            self.close()
            raise DeadlineExceeded(f"no response from {self.address} within {left:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if self._connect_until is not None and time.monotonic() > self._connect_until:
                raise Stalled(
                    f"nothing answers at {self.address}: {error}; check the address, and that the feedback "
                    "service runs"
                ) from error
            raise Unavailable(f"the feedback service at {self.address}: {error}") from error
        self._first_connect_seconds = self._connect_until = None
        if reply.status >= 400:
            raise _error(reply)
        return reply

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> Reply:
        connection = self._open
        if connection is None or connection.sock is None:
            connection = self._connect(seconds)
        connection.sock.settimeout(seconds)
        connection.request(method, self._prefix + path, data, dict(headers))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, found, response.read())

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        """Return a new connection; raises ConnectionError if nothing answers in time."""
        if self._first_connect_seconds is not None:
            seconds = min(seconds, self._first_connect_seconds)
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=seconds, context=self._context
            )
        try:
            connection.connect()
        except TimeoutError:
            raise ConnectionError(f"no answer within {seconds:.0f} s") from None
        self._open = connection
        return connection


def _error(reply: Reply) -> FairleadError:
    try:
        error = json.loads(reply.body)["error"]
        message, field = str(error["message"]), error.get("field")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, field = f"HTTP status {reply.status}, not from a feedback service: check the address", None
    if reply.status in (429, 503) and "retry-after" in reply.headers:
        delay = reply.headers.get("retry-after-ms") or f"{reply.headers['retry-after']}000"
        seconds = float(delay) / 1000 if delay.isdigit() else 1.0
        return Overloaded(message, retry_after_seconds=seconds)
    if reply.status in (400, 413, 415):
        return RemoteInvalidInput(message) if field else InvalidInput("request", got=message, allowed="")
    return _ERRORS.get(reply.status, InternalError)(message)
