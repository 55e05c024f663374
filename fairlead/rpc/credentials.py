"""Credentials of a client: TLS or plain text, and an API key.

Used by `fairlead/rpc/replicas.py`. An API key is never sent to another machine in plain text unless that is
allowed explicitly, and never appears in a message or a log.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence

from grpc import aio

from fairlead.errors import ConfigError
from fairlead.rpc.tls import Certificates, Tls, TlsFiles

Metadata = tuple[tuple[str, str], ...]
"""Names and values of a call's metadata."""
API_KEY_VARIABLE = "FAIRLEAD_API_KEY"
"""Environment variable with the API key of a client that is given none."""


class Credentials:
    """TLS settings and API key of one client."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        api_key: str | None = None,
        tls: TlsFiles | bool | None = None,
        allow_insecure: bool = False,
    ) -> None:
        """
        Args:
            addresses: addresses that will be called.
            api_key: the key; None for FAIRLEAD_API_KEY of the environment, "" for no key.
            tls: certificates, such as `[tls]` of a run; True for the authorities that come with gRPC; None or
                False for plain text.
            allow_insecure: allow sending the key to other machines in plain text.

        Raises:
            ConfigError: for unusable files, an invalid key, or a key that would be sent in plain text.
        """
        files = (Tls() if tls else None) if isinstance(tls, bool) else tls
        self._certificates = Certificates(files) if files is not None and files.on else None
        key = (os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
        if key and not re.fullmatch(r"[\x21-\x7e]{1,512}", key):
            raise ConfigError(
                "api_key", got="…", allowed="a key in the form that `fairlead keys create` prints"
            )
        if key and self._certificates is None and not allow_insecure:
            for address in addresses:
                if not is_loopback(address):
                    raise ConfigError(
                        "api_key",
                        got=f"a key that would be sent to {address} in plain text",
                        allowed="TLS (`[tls]`, or the client's `tls`), or allow_insecure "
                        "(`keys.allow_insecure = true`) on a network that you trust",
                    )
        self._metadata = (("authorization", f"Bearer {key}"),) if key else None

    @property
    def metadata(self) -> Metadata | None:
        """Metadata of every call; None without a key."""
        return self._metadata

    def call_metadata(self, more: Metadata) -> Metadata | None:
        """Return the metadata of one call: that of every call and `more`."""
        return (*(self._metadata or ()), *more) if more else self._metadata

    @property
    def generation(self) -> int:
        """Number of the loaded certificates; channels must be created again when it changes."""
        return self._certificates.generation if self._certificates is not None else 0

    def channel(self, target: str, options: Sequence[tuple[str, int | str]]) -> aio.Channel:
        """Return a channel to a gRPC target."""
        if self._certificates is None:
            return aio.insecure_channel(target, options=options)
        name = self._certificates.server_name
        more = [("grpc.ssl_target_name_override", name)] if name else []
        return aio.secure_channel(target, self._certificates.channel_credentials(), options=[*options, *more])


def host_of(address: str) -> str:
    """Return the host name or IP address in `host:port`, `[v6]:port` or `dns:///name:port`."""
    return address.removeprefix("dns:///").rpartition(":")[0].strip("[]")


def is_loopback(address: str) -> bool:
    """Return whether an address, `host:port` or a gRPC target, is on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
