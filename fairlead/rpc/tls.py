"""The TLS identity of a process: its certificate and whom it trusts, read again when the files change.

Beneath everything that listens or connects; makes credentials of gRPC and of Python's ssl. Knows no address.
A change is taken at the next handshake. Files that do not fit together, as while they are being replaced,
leave what was there; the log says so.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from fairlead.errors import ConfigError

logger = logging.getLogger(__name__)

_TRIES = 3
_States = tuple[tuple[int, ...], ...]


class TlsFiles(Protocol):
    """Where the files are: `[tls]` of a run, or `Tls`."""

    @property
    def certificate(self) -> str:
        """The process's certificate and those between it and its authority."""

    @property
    def key(self) -> str:
        """Its private key."""

    @property
    def ca(self) -> str:
        """Trusted authorities."""

    @property
    def mutual(self) -> bool:
        """Whether a server asks callers for a certificate."""

    @property
    def server_name(self) -> str:
        """The name that clients expect of servers."""

    @property
    def on(self) -> bool:
        """Whether TLS is spoken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS of a client that reads no configuration; the files are PEM and read again when they change."""

    ca: str = ""
    """Authorities that are trusted. Empty: those that gRPC brings."""
    certificate: str = ""
    """The client's own certificate and those between it and its authority, where servers ask for one."""
    key: str = ""
    """Its private key, without a passphrase."""
    server_name: str = ""
    """The name to expect in a server's certificate. Empty: that of its address."""

    @property
    def mutual(self) -> bool:
        """Clients ask nobody for more than TLS does."""
        return False

    @property
    def on(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold, of one moment."""

    certificate: bytes
    """The chain, the process's own first; empty for a client that shows none."""
    key: bytes = field(repr=False)
    """Its private key."""
    ca: bytes | None
    """Trusted authorities; None for those that gRPC brings."""


class Identity:
    """The certificate of a process and whom it trusts. May be used by any thread."""

    def __init__(
        self,
        section: TlsFiles,
        *,
        serves: bool = False,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            section: where the files are; `section.on` is true.
            serves: whether it is to be a server's.
            on_failure: told of every change that could not be taken.

        Raises:
            ConfigError: for files that cannot be read or do not fit together.
        """
        if bool(section.certificate) != bool(section.key):
            raise ConfigError("tls", got="`certificate` or `key` alone", allowed="both or neither")
        if serves and not section.certificate:
            raise ConfigError("tls.certificate", got="nothing", allowed="a certificate for what is served")
        self._section = section
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._states = _states(section)
        self._pems, self._context = _read(section)
        self._generation = 1

    @property
    def generation(self) -> int:
        """Grows with every change of the files that was taken; looks at them."""
        return self._current()[0]

    @property
    def server_name(self) -> str:
        """The name that servers must have; empty for that of their address."""
        return self._section.server_name

    def server_credentials(self) -> grpc.ServerCredentials:
        """Of a gRPC server; every handshake takes the files as they are then."""
        generation, pems = self._current()
        taken = [generation]

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            now, pems = self._current()
            if now == taken[0]:
                return None
            taken[0] = now
            return _configuration(pems)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(pems),
            fetch,  # type: ignore[arg-type]  # None says that nothing has changed
            require_client_authentication=self._section.mutual,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Of a gRPC channel, with the files as they are now."""
        _, pems = self._current()
        return grpc.ssl_channel_credentials(pems.ca, pems.key or None, pems.certificate or None)

    def server_context(self) -> ssl.SSLContext:
        """Of an HTTP server; every handshake takes the files as they are then."""
        self._current()
        context = self._context

        def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            self._current()
            connection.context = self._context

        context.sni_callback = renew
        return context

    def client_context(self) -> ssl.SSLContext:
        """Of an HTTP client, with the files as they are now."""
        _, pems = self._current()
        context = ssl.create_default_context(cadata=pems.ca.decode("ascii") if pems.ca else None)
        if self._section.certificate:
            context.load_cert_chain(self._section.certificate, self._section.key, password="")
        return context

    def _current(self) -> tuple[int, Pems]:
        with self._lock:
            states = _states(self._section)
            if states != self._states:
                # Before they are read: what is written meanwhile is another change.
                self._states = states
                try:
                    self._pems, self._context = _read(self._section)
                except ConfigError as error:
                    logger.error("the TLS identity stays as it was: %s", error)
                    if self._on_failure is not None:
                        self._on_failure()
                else:
                    self._generation += 1
                    logger.info(
                        "the TLS identity was read again: %s", self._section.certificate or "authorities"
                    )
            return self._generation, self._pems


def _read(section: TlsFiles) -> tuple[Pems, ssl.SSLContext]:
    """The files, all of one moment, checked, and a server's context made of them.

    Raises:
        ConfigError: naming the file, and never its content.
    """
    for _ in range(_TRIES):
        before = _states(section)
        found = Pems(
            certificate=_content("tls.certificate", section.certificate),
            key=_content("tls.key", section.key),
            ca=_content("tls.ca", section.ca) or None,
        )
        context = _ssl_context(section, found)
        if _states(section) == before:
            return found, context
    raise ConfigError("tls.certificate", got="files that change all the time", allowed="files that stay")


def _ssl_context(section: TlsFiles, pems: Pems) -> ssl.SSLContext:
    """A server's context, which also proves that the files are what they should be.

    Raises:
        ConfigError: if they are not.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pems.ca is not None:
        try:
            context.load_verify_locations(cadata=pems.ca.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise _unfit("tls.ca", section.ca, "certificates of authorities as PEM") from None
    if section.certificate:
        try:
            context.load_cert_chain(section.certificate, section.key, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "unreadable"
            raise _unfit(
                "tls.certificate",
                f"{reason} in {section.certificate} with {section.key}",
                "a certificate as PEM and its private key, without a passphrase",
            ) from None
    if section.mutual:
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.ca)


def _content(field_name: str, path: str) -> bytes:
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unfit(field_name, f"{path} ({error.strerror})", "a readable PEM file") from None


def _unfit(field_name: str, got: str, allowed: str) -> ConfigError:
    return ConfigError(field_name, got=got, allowed=allowed)


def _states(section: TlsFiles) -> _States:
    """What differs after a change, also of links, as a mounted Secret swaps them."""
    return tuple(_state(path) for path in (section.certificate, section.key, section.ca) if path)


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
