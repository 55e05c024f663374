"""The certificates of a process: its own and those of trusted authorities, read again when the files change.

Used by everything that listens or connects; creates credentials for gRPC and for Python's ssl. Knows nothing
about addresses. A change takes effect at the next handshake. While files do not match, for example during
their replacement, the previous certificates stay in use and an error is logged.
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

_READ_ATTEMPTS = 3
_States = tuple[tuple[int, ...], ...]


class TlsFiles(Protocol):
    """Paths of the PEM files: the `[tls]` section of a run, or `Tls`."""

    @property
    def certificate(self) -> str:
        """The process's certificate and any intermediate ones."""

    @property
    def key(self) -> str:
        """Private key of the certificate."""

    @property
    def ca(self) -> str:
        """Certificates of trusted authorities."""

    @property
    def mutual(self) -> bool:
        """Whether a server requires a certificate from callers."""

    @property
    def server_name(self) -> str:
        """The name that clients expect in a server's certificate."""

    @property
    def on(self) -> bool:
        """Whether TLS is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS settings of a client without a configuration file. Files are PEM and are read again when they
    change.
    """

    ca: str = ""
    """Certificates of trusted authorities; empty for those that come with gRPC."""
    certificate: str = ""
    """The client's certificate and any intermediate ones, for servers that require one (mTLS)."""
    key: str = ""
    """Private key of the certificate, without a passphrase."""
    server_name: str = ""
    """Name to expect in a server's certificate; empty for the name in its address."""

    @property
    def mutual(self) -> bool:
        """Return False: only servers require certificates from their callers."""
        return False

    @property
    def on(self) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True, slots=True)
class PemContents:
    """Contents of the files, read at one moment."""

    certificate: bytes
    """The certificate chain, the process's own first; empty for a client without one."""
    key: bytes = field(repr=False)
    """Private key of the certificate."""
    ca: bytes | None
    """Certificates of trusted authorities; None for those that come with gRPC."""


class Certificates:
    """The certificate of a process and its trusted authorities. Thread-safe."""

    def __init__(
        self,
        section: TlsFiles,
        *,
        serves: bool = False,
        on_failure: Callable[[], None] | None = None,
        asks_clients: bool = False,
    ) -> None:
        """
        Args:
            section: paths of the files; `section.on` is true.
            serves: whether a server uses them, which requires a certificate.
            on_failure: called after every change of the files that could not be loaded.
            asks_clients: an HTTP server with `mutual` accepts clients without a certificate, too, and checks
                by itself which of them has one.

        Raises:
            ConfigError: for files that cannot be read or do not match.
        """
        if bool(section.certificate) != bool(section.key):
            raise ConfigError("tls", got="only one of `certificate` and `key`", allowed="both or neither")
        if serves and not section.certificate:
            raise ConfigError("tls.certificate", got="none", allowed="a certificate for the server")
        self._section = section
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._states = _states(section)
        self._verify = ssl.CERT_NONE
        if section.mutual:
            self._verify = ssl.CERT_OPTIONAL if asks_clients else ssl.CERT_REQUIRED
        self._pems, self._context = _read(section, self._verify)
        self._generation = 1

    @property
    def generation(self) -> int:
        """Number of the loaded version of the files; checks them for changes."""
        return self._current()[0]

    @property
    def server_name(self) -> str:
        """Name expected in a server's certificate; empty for the name in its address."""
        return self._section.server_name

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a gRPC server; every handshake uses the current files."""
        generation, pems = self._current()
        served = [generation]

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            now, pems = self._current()
            if now == served[0]:
                return None
            served[0] = now
            return _configuration(pems)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(pems),
            fetch,  # type: ignore[arg-type]  # None means no change
            require_client_authentication=self._section.mutual,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return credentials for a gRPC channel, with the current files."""
        _, pems = self._current()
        return grpc.ssl_channel_credentials(pems.ca, pems.key or None, pems.certificate or None)

    def server_context(self) -> ssl.SSLContext:
        """Return a context for an HTTP server; every handshake uses the current files."""
        self._current()
        context = self._context

        def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            self._current()
            connection.context = self._context

        context.sni_callback = renew
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context for an HTTP client, with the current files."""
        _, pems = self._current()
        context = ssl.create_default_context(cadata=pems.ca.decode("ascii") if pems.ca else None)
        if self._section.certificate:
            context.load_cert_chain(self._section.certificate, self._section.key, password="")
        return context

    def _current(self) -> tuple[int, PemContents]:
        with self._lock:
            states = _states(self._section)
            if states != self._states:
                # Set before reading: a write during the read counts as another change.
                self._states = states
                try:
                    self._pems, self._context = _read(self._section, self._verify)
                except ConfigError as error:
                    logger.error(
                        "the TLS files changed but cannot be used; keeping the previous ones: %s", error
                    )
                    if self._on_failure is not None:
                        self._on_failure()
                else:
                    self._generation += 1
                    logger.info("loaded changed TLS files: %s", self._section.certificate or self._section.ca)
            return self._generation, self._pems


def _read(section: TlsFiles, verify: ssl.VerifyMode) -> tuple[PemContents, ssl.SSLContext]:
    """Read and check the files at one moment, and create a server's context from them.

    Raises:
        ConfigError: names the file, never its content.
    """
    for _ in range(_READ_ATTEMPTS):
        before = _states(section)
        found = PemContents(
            certificate=_content("tls.certificate", section.certificate),
            key=_content("tls.key", section.key),
            ca=_content("tls.ca", section.ca) or None,
        )
        context = _ssl_context(section, found)
        context.verify_mode = verify
        if _states(section) == before:
            return found, context
    raise ConfigError(
        "tls.certificate",
        got="files that changed while they were read",
        allowed="files that are replaced in one step",
    )


def _ssl_context(section: TlsFiles, pems: PemContents) -> ssl.SSLContext:
    """Return a server's context; creating it checks the files.

    Raises:
        ConfigError: if a file is invalid or the key does not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pems.ca is not None:
        try:
            context.load_verify_locations(cadata=pems.ca.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise _invalid("tls.ca", section.ca, "PEM certificates of authorities") from None
    if section.certificate:
        try:
            context.load_cert_chain(section.certificate, section.key, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "unreadable"
            raise _invalid(
                "tls.certificate",
                f"{reason} in {section.certificate} with {section.key}",
                "a PEM certificate and its private key, without a passphrase",
            ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _configuration(pems: PemContents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.ca)


def _content(field_name: str, path: str) -> bytes:
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _invalid(field_name, f"{path} ({error.strerror})", "a readable PEM file") from None


def _invalid(field_name: str, got: str, allowed: str) -> ConfigError:
    return ConfigError(field_name, got=got, allowed=allowed)


def _states(section: TlsFiles) -> _States:
    """Return a value that changes with the files, also when a link is swapped as in a mounted Secret."""
    return tuple(_state(path) for path in (section.certificate, section.key, section.ca) if path)


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
