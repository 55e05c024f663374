"""`[weights]`: the store of policy versions between trainer and policy replicas."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.server import ServerSection


class WeightsSection(ServerSection):
    """Immutable, checksummed versions in a folder that the trainer writes; replicas see the folder too, or
    fetch from the weights service and from one another.
    """

    transport: Literal["filesystem", "grpc"] = "filesystem"
    """How policy replicas get versions: `filesystem` reads `path`, which they must see; `grpc` asks the
    weights service at `addresses`."""
    path: str = ""
    """Folder of the store. Empty: `weights/` in the run's folder."""
    keep: int = Field(default=3, ge=2, le=1_000)
    """Newest versions kept."""
    cache: str = ""
    """`grpc`: folder in which a replica keeps what it fetched, its own alone. Empty: one below
    `weight_caches/` in the run's folder, named after its port."""
    cache_versions: int = Field(default=2, ge=1, le=1_000)
    """Versions that a replica's cache holds at most, the one that is coming in included."""
    chunk_bytes: int = Field(default=256 << 10, ge=1 << 10, le=3 << 20)
    """Length of one message of a shard's bytes."""
    relay_address: str = ""
    """`host:port` where peers fetch from this replica. Empty: where it listens, unless that is every
    interface, as in a pod: then it does not relay."""
    relay_fan_out: int = Field(default=1, ge=1, le=64)
    """How many fetch from the origin, and from each replica, at the same time. 1 makes a chain, which takes
    least time where senders have the same bandwidth; more suffer less from one slow replica."""
    direct: bool = True
    """`grpc`: bytes come over a plain TCP connection beside it, where sender and receiver want that: several
    times the rate. Never under `[tls]`; where the connection cannot be made, they come over gRPC."""
    direct_port: int = Field(default=0, ge=0, le=65_535)
    """Port of the weights service, and of each replica that relays, for `direct`. 0: any that is free."""
    lease_seconds: float = Field(default=5.0, ge=0.5, le=600)
    """A replica that was not heard of for so long loses its place at a source, and is none itself."""
    stall_seconds: float = Field(default=10.0, ge=0.5, le=600)
    """A source that sends nothing for so long is left for another."""
    give_up_seconds: float = Field(default=60.0, ge=1, le=86_400)
    """A fetch that gets nothing from any source for so long fails; the replica tries again later."""
    max_send_bytes_per_second: int = Field(default=0, ge=0)
    """What the weights service, and each replica that relays, sends at most; 0 is no limit."""
