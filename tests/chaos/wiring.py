"""A supervised run of PPO with a proxy between every two processes that communicate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead.config import RunConfig
from fairlead.local.addresses import MODEL_SERVICES, split_address
from fairlead.local.process import ProcessSpec
from fairlead.local.run import is_finished, processes
from fairlead.local.run_files import read_progress
from fairlead.local.supervisor import Observed, Supervisor
from tests.chaos.proxy import Proxy

REDIS_URL = "FAIRLEAD_QUEUE__REDIS_URL"


@dataclass(frozen=True, slots=True)
class Wired:
    """A run whose processes do not run yet."""

    supervisor: Supervisor
    """Starts them with `run`."""
    proxies: dict[str, Proxy]
    """By link, see `with_proxies`."""
    redis_url: str
    """Address of the queue, without a proxy."""


async def wired(
    config: RunConfig,
    *,
    change: Callable[[ProcessSpec], ProcessSpec] = lambda spec: spec,
    observed: Observed | None = None,
) -> Wired:
    """Plan the processes of PPO with proxies between them; `change` may replace a process."""
    planned, environment, _ = processes(config, "ppo")
    specs, proxies = await with_proxies([change(spec) for spec in planned], environment)
    supervisor = Supervisor(
        specs,
        local=config.local,
        folder=config.folder,
        environment=environment,
        stage="ppo",
        finished=lambda: is_finished(config, "ppo"),
        observed=observed,
    )
    return Wired(supervisor, proxies, environment[REDIS_URL])


def step(config: RunConfig) -> int:
    """Return the last update that a run has reported."""
    now = read_progress(config.folder.progress)
    return now.step if now else 0


async def with_proxies(
    specs: Sequence[ProcessSpec], environment: Mapping[str, str]
) -> tuple[list[ProcessSpec], dict[str, Proxy]]:
    """Return the rewritten specs, and the proxies by link, such as `rollout-worker-0 to policy-1`.

    `peers to policy-0` is the link over which other replicas fetch weights from it, `caller to gateway-0` the
    one of external callers.
    """
    links = _Links(environment)
    rewired = [replace(spec, environment=await links.environment_of(spec)) for spec in specs]
    return rewired, links.proxies


class _Links:
    """Creates the proxies."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._redis_url = environment.get(REDIS_URL, "")
        self.proxies: dict[str, Proxy] = {}

    async def environment_of(self, spec: ProcessSpec) -> dict[str, str]:
        """Return the environment of a process, with addresses replaced by those of its proxies."""
        kind = spec.name.rpartition("-")[0] or spec.name
        found = dict(spec.environment)
        # The trainer calls the model services only for evaluations, which this run has not.
        called = {
            "rollout-worker": MODEL_SERVICES,
            "gateway": ("policy", "reward"),
            "policy": ("weights",),
        }
        for service in called.get(kind, ()):
            key = f"FAIRLEAD_{service.upper()}__ADDRESSES"
            addresses = enumerate(json.loads(found.get(key, "[]")))
            through = [
                await self._proxy(f"{spec.name} to {service}-{index}", address)
                for index, address in addresses
            ]
            found |= {key: json.dumps(through)} if through else {}
        if kind in ("trainer", "rollout-worker"):
            head, at, tail = self._redis_url.rpartition("@")
            address, slash, database = tail.partition("/")
            through_queue = await self._proxy(f"{spec.name} to valkey", address)
            found[REDIS_URL] = head + at + through_queue + slash + database
        if kind == "policy" and "FAIRLEAD_WEIGHTS__ADDRESSES" in found:
            bind = found["FAIRLEAD_POLICY__BIND"]
            found["FAIRLEAD_WEIGHTS__RELAY_ADDRESS"] = await self._proxy(f"peers to {spec.name}", bind)
        if kind == "gateway":
            await self._proxy(f"caller to {spec.name}", found["FAIRLEAD_GATEWAY__BIND"])
        return found

    async def _proxy(self, link: str, address: str) -> str:
        host, port = split_address(address, field=link)
        proxy = self.proxies[link] = Proxy(host, port)
        await proxy.start()
        return proxy.address
