"""The queue of a run now, from gauges that its trainer serves, which are sampled beside the training loop."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fairlead.local.probes import get
from fairlead.rpc.tls import TlsFiles

_GAUGE = re.compile(
    rb'^fairlead_trainer_queue_(?:entries\{what="(\w+)"\}|(memory_bytes|memory_limit_bytes)) (\S+)$',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class LiveQueue:
    """Sizes of the queue a few seconds ago at most."""

    waiting: int
    """Tasks that no worker has claimed."""
    in_flight: int
    """Tasks that workers have claimed."""
    outcomes: int
    """Outcomes that the trainer has not taken."""
    memory_bytes: int
    """Memory that Redis uses."""
    limit_bytes: int
    """Memory that it may use; 0 for no limit."""


async def live_queue(address: str, tls: TlsFiles | None = None) -> LiveQueue | None:
    """Return the queue; None if the trainer does not answer, has no sample yet, or Redis does not answer it.

    Args:
        address: `host:port` of the trainer's metrics.
        tls: TLS files of the run, if its metrics are served over TLS.
    """
    host, _, port = address.rpartition(":")
    page = await get(host, int(port), "/metrics", tls=tls)
    found = {(what or name).decode(): float(value) for what, name, value in _GAUGE.findall(page or b"")}
    try:
        sizes = [
            found[name] for name in ("waiting", "in_flight", "outcomes", "memory_bytes", "memory_limit_bytes")
        ]
    except KeyError:
        return None
    return LiveQueue(*map(int, sizes)) if all(map(math.isfinite, sizes)) else None
