"""The address of a caller whose requests come through proxies, for the log."""

from __future__ import annotations

import ipaddress
from collections.abc import MutableMapping, Sequence
from typing import Any

_MAX_HOPS = 64


class ProxyChain:
    """Finds the address of a caller: the last one that no trusted proxy has."""

    def __init__(self, trusted: Sequence[str]) -> None:
        """
        Args:
            trusted: networks of the proxies that are believed.
        """
        self._trusted = [ipaddress.ip_network(one) for one in trusted]

    def client(self, scope: MutableMapping[str, Any]) -> str:
        """Return the address of the caller of a request; `?` if it is not known.

        X-Forwarded-For is read from its end, and only as far as trusted proxies wrote it: the rest may be
        the caller's invention.
        """
        peer = (scope.get("client") or ("?",))[0]
        if not self._trusts(peer):
            return str(peer)
        values = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        hops = b",".join(values).decode("latin-1").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]
        for hop in reversed([one.strip() for one in hops if one.strip()]):
            address = _address(hop)
            if address is None:
                break
            peer = address
            if not self._trusts(address):
                break
        return str(peer)

    def _trusts(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        return any((mapped or found) in network for network in self._trusted)


def _address(hop: str) -> str | None:
    """Return the address of an entry of X-Forwarded-For, some of which have a port; None if it is none."""
    host = hop[1:].partition("]")[0] if hop.startswith("[") else hop
    if hop.count(":") == 1:
        host = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None
