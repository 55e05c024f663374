"""Ports of a run on one machine: free ones, and a clear word when a configured one is taken.

Knows sockets and addresses (`host:port`); not which process uses them for what.
"""

from __future__ import annotations

import random
import socket

from fairlead.errors import ConfigError

# Below the kernel's range for outgoing connections (32768 and up on Linux), so that none of these can take
# a port while its process is away.
_FIRST, _LAST = 20_000, 32_000

LOOPBACK = "127.0.0.1"


def split(address: str, *, field: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`.

    Raises:
        ConfigError: if it is neither.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(field, got=address, allowed="host:port")
    return host, int(port)


def is_local(host: str) -> bool:
    """Whether this machine can listen on the host: else the service runs somewhere else."""
    try:
        with _socket(host) as listener:
            listener.bind((host, 0))
    except OSError:
        return False
    return True


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on the port."""
    try:
        with _socket(host) as listener:
            listener.bind((host, port))
            listener.listen(1)
    except OSError:
        return False
    return True


def reachable_host(host: str) -> str:
    """Where a server that listens on `host` is found from this machine."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)


def joined(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Ports:
    """Hands out every port of a run once, and names the process that wants a taken one."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}

    def fixed(self, process: str, host: str, port: int, *, field: str) -> int:
        """A port that the configuration names.

        Raises:
            ConfigError: if it is taken; says by which process of this run, or by a stranger.
        """
        if port in self._owners:
            raise ConfigError(
                field,
                got=f"port {port} for {process}, which {self._owners[port]} of this run has",
                allowed="a port of its own",
            )
        if not is_free(host, port):
            raise ConfigError(
                field,
                got=f"port {port} for {process}, which is taken on {host}",
                allowed="a free port, or 0 for any",
            )
        self._owners[port] = process
        return port

    def free(self, process: str, host: str = LOOPBACK) -> int:
        """Any port that nobody listens on."""
        # Not seeded by the run: two runs started together must not try the same ports in the same order.
        candidates = random.SystemRandom().sample(range(_FIRST, _LAST), 1_000)
        for port in candidates:
            if port not in self._owners and is_free(host, port):
                self._owners[port] = process
                return port
        raise ConfigError(
            "port", got=f"none free on {host} for {process}", allowed="a machine with free ports"
        )

    def take(self, process: str, host: str, port: int, *, field: str) -> int:
        """The port that is configured, or a free one for 0."""
        return self.fixed(process, host, port, field=field) if port else self.free(process, host)


def _socket(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    # Connections that linger after a close do not count; listeners do.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made
