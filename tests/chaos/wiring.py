"""A run's plan with a proxy between every two processes that talk: only who connects to whom is rewritten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fairlead.local.addresses import MODEL_SERVICES, split_address
from fairlead.local.process import ProcessSpec
from tests.chaos.proxy import Proxy

REDIS_URL = "FAIRLEAD_QUEUE__REDIS_URL"


async def wired(
    specs: Sequence[ProcessSpec], environment: Mapping[str, str]
) -> tuple[list[ProcessSpec], dict[str, Proxy]]:
    """The specs, and the proxies by link: `rollout-worker-0 to policy-1`, `trainer to valkey`.

    `peers to policy-0` is where other replicas fetch weights from it, `caller to gateway-0` where strangers
    ask.
    """
    wires = _Wires(environment)
    rewired = [replace(spec, environment=await wires.of(spec)) for spec in specs]
    return rewired, wires.proxies


class _Wires:
    """Proxies, as they are made."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._redis_url = environment.get(REDIS_URL, "")
        self.proxies: dict[str, Proxy] = {}

    async def of(self, spec: ProcessSpec) -> dict[str, str]:
        """The variables of a process, its peers' addresses replaced by proxies of its own."""
        kind, found = spec.name.rpartition("-")[0] or spec.name, dict(spec.environment)
        # The trainer asks the models only when it evaluates.
        asked = {
            "rollout-worker": MODEL_SERVICES,
            "gateway": ("policy", "reward"),
            "policy": ("weights",),
        }
        for service in asked.get(kind, ()):
            key = f"FAIRLEAD_{service.upper()}__ADDRESSES"
            places = enumerate(json.loads(found.get(key, "[]")))
            through = [await self._through(f"{spec.name} to {service}-{index}", at) for index, at in places]
            found |= {key: json.dumps(through)} if through else {}
        if kind in ("trainer", "rollout-worker"):
            head, at, tail = self._redis_url.rpartition("@")
            place, slash, database = tail.partition("/")
            through_queue = await self._through(f"{spec.name} to valkey", place)
            found[REDIS_URL] = head + at + through_queue + slash + database
        if kind == "policy" and "FAIRLEAD_WEIGHTS__ADDRESSES" in found:
            bind = found["FAIRLEAD_POLICY__BIND"]
            found["FAIRLEAD_WEIGHTS__RELAY_ADDRESS"] = await self._through(f"peers to {spec.name}", bind)
        if kind == "gateway":
            await self._through(f"caller to {spec.name}", found["FAIRLEAD_GATEWAY__BIND"])
        return found

    async def _through(self, link: str, address: str) -> str:
        host, port = split_address(address, field=link)
        proxy = self.proxies[link] = Proxy(host, port)
        await proxy.start()
        return proxy.address
