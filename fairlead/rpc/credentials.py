"""How a client connects and who it says it is: TLS or plain text, and an API key.

Beneath the channel. An API key is never sent in plain text to another machine unless that is asked for, and
never stands in a message or a log.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence

from grpc import aio

from fairlead.errors import ConfigError
from fairlead.rpc.tls import Identity, Tls, TlsFiles

Metadata = tuple[tuple[str, str], ...]
"""Names and values of a call."""
API_KEY_VARIABLE = "FAIRLEAD_API_KEY"
"""Environment variable with the key of a process that is given none otherwise."""


class Credentials:
    """Of one client."""

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
            addresses: that will be called.
            api_key: the key; None takes FAIRLEAD_API_KEY of the environment, "" shows none.
            tls: certificates, such as `[tls]` of a run; True trusts the authorities that gRPC brings, None
                and False are plain text.
            allow_insecure: show the key to other machines in plain text, too.

        Raises:
            ConfigError: for files that cannot be used, a key that is none, or one that would travel openly.
        """
        files = (Tls() if tls else None) if isinstance(tls, bool) else tls
        self._identity = Identity(files) if files is not None and files.on else None
        key = (os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
        if key and not re.fullmatch(r"[\x21-\x7e]{1,512}", key):
            raise ConfigError("api_key", got="…", allowed="a key as `fairlead keys create` prints it")
        if key and self._identity is None and not allow_insecure:
            for address in addresses:
                if not is_loopback(address):
                    raise ConfigError(
                        "api_key",
                        got=f"a key for {address}, which is another machine, in plain text",
                        allowed="with TLS (`[tls]`, or the client's `tls`), or allow_insecure "
                        "(`keys.allow_insecure = true`) on a network that you trust",
                    )
        self._metadata = (("authorization", f"Bearer {key}"),) if key else None

    @property
    def metadata(self) -> Metadata | None:
        """What every call carries."""
        return self._metadata

    def with_(self, more: Metadata) -> Metadata | None:
        """The same, and what one call carries beside it."""
        return (*(self._metadata or ()), *more) if more else self._metadata

    @property
    def generation(self) -> int:
        """Grows when the certificate or the authorities have changed: channels are made anew."""
        return self._identity.generation if self._identity is not None else 0

    def channel(self, target: str, options: Sequence[tuple[str, int | str]]) -> aio.Channel:
        """A channel to a gRPC target."""
        if self._identity is None:
            return aio.insecure_channel(target, options=options)
        name = self._identity.server_name
        more = [("grpc.ssl_target_name_override", name)] if name else []
        return aio.secure_channel(target, self._identity.channel_credentials(), options=[*options, *more])


def host_of(address: str) -> str:
    """The name or the number in `host:port`, `[v6]:port` or `dns:///name:port`."""
    return address.removeprefix("dns:///").rpartition(":")[0].strip("[]")


def is_loopback(address: str) -> bool:
    """Whether what is sent to an address, `host:port` or a gRPC target, stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
