"""A run's plan with a proxy between every two processes that talk: only who connects to whom is rewritten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fairlead.local.addresses import MODEL_SERVICES
from fairlead.local.ports import split
from fairlead.local.process import ProcessSpec
from tests.chaos.proxy import Proxy

REDIS_URL = "FAIRLEAD_QUEUE__REDIS_URL"


async def wired(
    specs: Sequence[ProcessSpec], environment: Mapping[str, str]
) -> tuple[list[ProcessSpec], dict[str, Proxy]]:
    """The specs, and the proxies by link: `rollout-worker-0 to policy-1`, `trainer to valkey`."""
    proxies: dict[str, Proxy] = {}
    rewired = []
    for spec in specs:
        if spec.name == "trainer" or spec.name.startswith("rollout-worker"):
            rewired.append(replace(spec, environment=await _wire(spec, environment, proxies)))
        else:
            rewired.append(spec)
    return rewired, proxies


async def _wire(
    spec: ProcessSpec, environment: Mapping[str, str], proxies: dict[str, Proxy]
) -> dict[str, str]:
    async def through(peer: str, address: str) -> str:
        host, port = split(address, field=peer)
        proxy = proxies[f"{spec.name} to {peer}"] = Proxy(host, port)
        await proxy.start()
        return proxy.address

    found = dict(spec.environment)
    # The trainer asks the models only when it evaluates.
    for service in () if spec.name == "trainer" else MODEL_SERVICES:
        key = f"FAIRLEAD_{service.upper()}__ADDRESSES"
        places = enumerate(json.loads(found[key]))
        found[key] = json.dumps([await through(f"{service}-{index}", place) for index, place in places])
    head, at, tail = environment[REDIS_URL].rpartition("@")
    place, slash, database = tail.partition("/")
    found[REDIS_URL] = head + at + await through("valkey", place) + slash + database
    return found
