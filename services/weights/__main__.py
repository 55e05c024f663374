"""Wires the weights service: the trainer's store → servicer → server. Keeps running if the trainer ends."""

from __future__ import annotations

import sys

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.transports.weights.base import LEASE_SECONDS
from fairlead.transports.weights.direct_port import open_direct_port
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.transports.weights.sender import Sender
from fairlead.transports.weights.shard_servicer import SERVICE_NAME
from services.runtime import process
from services.runtime.server import ModelServer
from services.weights.registry import Registry
from services.weights.servicer import WeightServicer, wire_limits


async def run(config: RunConfig) -> None:
    """Serve until a signal, then drain."""
    section = config.weights
    async with (
        ModelServer(
            "weights",
            section,
            config.observe,
            limits=config.server_limits("weights"),
            keys=config.keys,
            tls=config.tls,
        ) as server,
        open_direct_port(section.bind_address, section, encrypted=config.tls.on) as direct_port,
    ):
        store = FilesystemWeightStore(config.weights_path)
        registry = Registry(fan_out=section.relay_fan_out, lease_seconds=LEASE_SECONDS)
        sender = Sender(store, section, metrics.WeightsMetrics(), direct=direct_port)
        servicer = WeightServicer(store, registry, sender)
        await server.start(servicer.add_to, [SERVICE_NAME], wire_limits())
        # Ready even without a version: that there is none yet is a valid reply.
        server.set_ready(True)
        await server.run_until_stopped()


if __name__ == "__main__":
    sys.exit(process.main("weights", run))
