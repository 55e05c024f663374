"""Faults, and the alerts that fire for them in a real Prometheus, whose rules are 30 times as fast."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import redis
from prometheus_client import CollectorRegistry

from fairlead.config import RunConfig
from fairlead.config.saving import save
from fairlead.local import valkey
from fairlead.local.process import ProcessSpec
from fairlead.local.restart_policy import RunOutcome
from fairlead.local.run_files import RunLock
from fairlead.local.supervisor import Observed, Supervisor
from fairlead.metrics import SupervisorMetrics
from tests.chaos.chaos import configured
from tests.chaos.faults import Fault
from tests.chaos.injector import Injector
from tests.chaos.proxy import Proxy
from tests.chaos.test_damage import flip, newest
from tests.chaos.wiring import step, wired
from tests.contract.test_documents import script
from tests.integration.test_prometheus import key, post
from tests.prometheus_server import SPEED, Prometheus, prometheus
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@dataclass(frozen=True, slots=True)
class World:
    """A run under faults, and what observes it."""

    config: RunConfig
    supervisor: Supervisor
    proxies: dict[str, Proxy]
    injector: Injector
    server: Prometheus

    async def inject(self, kind: str, target: str, *, seconds: float = 0.0) -> None:
        """Inject a fault now."""
        await self.injector.inject(Fault(0, 0, kind, target, seconds))

    async def until(self, condition: Callable[[], object], *, seconds: float = 400.0) -> None:
        """Wait for a condition, which may take long; the proxies work meanwhile."""
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def all_ready(self) -> float:
        """Wait until every process is ready and no alert fires, for Prometheus; return the time."""
        count = len(self.supervisor.processes) - 1  # Valkey has no metrics
        everything = 'sum(fairlead_process_ready{run="tiny"})'
        await self.until(
            lambda: self.server.query(everything)[:1] == [({}, float(count))] and self.server.is_well("tiny")
        )
        return time.time()

    def fired(self, since: float) -> dict[str, set[str]]:
        """Return the alerts since a time, with their subjects."""
        return self.server.fired(since=since, run="tiny")

    async def fires(self, alert: str, subject: str = "", *, since: float) -> None:
        """Wait until an alert fires."""
        await self.until(lambda: subject in self.fired(since).get(alert, ()))
        sys.stdout.write(f"{alert} after {time.time() - since:.0f} s\n")


def observed(
    config: RunConfig,
    server: Prometheus,
    faults: Callable[[World], Awaitable[None]],
    *,
    change: Callable[[ProcessSpec], ProcessSpec] = lambda spec: spec,
) -> None:
    """Run until the faults have had their effects."""

    async def work() -> None:
        observed = Observed(SupervisorMetrics(registry=CollectorRegistry()), run=config.name)
        run = await wired(config, change=change, observed=observed)
        supervisor, proxies = run.supervisor, run.proxies
        injector = Injector(supervisor, proxies, redis_url=run.redis_url, update=lambda: step(config))
        running = asyncio.ensure_future(supervisor.run())
        injecting = asyncio.ensure_future(
            faults(World(config, supervisor, proxies, injector, server))  # type: ignore[arg-type]
        )
        try:
            await asyncio.wait({running, injecting}, return_when=asyncio.FIRST_COMPLETED)
            assert injecting.done() or running.result() == RunOutcome(0, "trainer has finished")
            await injecting
        finally:
            supervisor.stop(RunOutcome(0, "enough"))
            await injector.wait_healed()
            await asyncio.gather(running, injecting, return_exceptions=True)
            for proxy in proxies.values():
                await proxy.cut()

    with RunLock(config.folder):
        save(config, config.folder.config)
        asyncio.run(work())


async def break_one_after_the_other(world: World) -> None:
    begun = await world.all_ready()
    before = step(world.config)
    await asyncio.sleep(25)  # longer than any time that an alert waits, but that of TrainerStarves
    await until(lambda: step(world.config) >= before + 5, seconds=120)
    assert world.fired(begun).keys() <= SPEED, "a healthy run"
    await spend_quota_and_damage_keys(world)
    await fill_redis(world)

    begun = time.time()
    await world.inject("pause", "valkey", seconds=40)
    await world.fires("FairleadQueueDoesNotAnswer", since=begun)
    await world.injector.wait_healed()
    await world.all_ready()

    begun = time.time()
    link = world.proxies["policy-1 to weights-0"]
    link.stall()
    await world.inject("kill", "policy-1")
    await world.fires("FairleadNotReady", "policy-1", since=begun)
    await link.heal()
    await world.all_ready()
    assert "FairleadReplicaLagsBehind" not in world.fired(begun), "a replica that loads does not lag"
    await damage_shard(world)


async def damage_shard(world: World) -> None:
    """Flip a bit of the newest weights in the store, and let both replicas read them again."""
    begun = time.time()
    trainer = next(each.pid for each in world.supervisor.processes if each.name == "trainer")
    assert trainer is not None
    await world.inject("hang", "trainer")  # it would replace the damaged version
    shard = newest(world.config.folder.weights) / "model-00001.safetensors"
    whole = shard.read_bytes()
    flip(shard)
    # Verified copies of the replicas, which they read themselves and relay to each other.
    shutil.rmtree(world.config.folder.weight_caches)
    for replica in ("policy-0", "policy-1"):
        await world.inject("kill", replica)
    await world.until(lambda: world.fired(begun).get("FairleadWeightsDamaged"))
    assert world.fired(begun)["FairleadWeightsDamaged"] <= {"policy-0", "policy-1"}
    versions = 'fairlead_policy_weight_update{run="tiny"}'
    assert world.server.query(versions) == [], "the damaged version is not used"
    shard.write_bytes(whole)
    os.kill(trainer, signal.SIGCONT)
    await world.all_ready()


async def spend_quota_and_damage_keys(world: World) -> None:
    begun = time.time()
    address = world.proxies["caller to gateway-0"].address
    app = os.environ["APP_KEY"]
    await world.until(lambda: post(address, app) == 429)
    await world.fires("FairleadKeyOutOfQuota", "app", since=begun)
    with damaged(Path(str(world.config.keys.file))):
        await asyncio.to_thread(post, address, app)
        await world.fires("FairleadConfigurationNotTaken", "gateway-0", since=begun)


@contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Replace a file by one that cannot be read, inside the block."""
    text = file.read_text()
    file.write_text("{")
    try:
        yield
    finally:
        file.write_text(text)


async def fill_redis(world: World) -> None:
    begun = time.time()
    with redis.Redis.from_url(valkey.last_url(world.config.folder.redis)) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.1))
        await world.fires("FairleadRedisNearlyFull", since=begun)
        client.config_set("maxmemory", 0)


def keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Create the key of the run and one with a small quota; return the settings."""
    scopes = [part for scope in ("score", "generate", "weights", "admin") for part in ("--scope", scope)]
    monkeypatch.setenv("FAIRLEAD_API_KEY", key(folder, "run", *scopes))
    monkeypatch.setenv("APP_KEY", key(folder, "app", "--tokens-per-day", "60"))
    return {"keys.file": str(folder / "keys.json")}


def test_each_fault_fires_its_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = keys(tmp_path, monkeypatch) | {
        "policy.replicas": 2,
        "gateway.replicas": 1,
        "weights.transport": "grpc",
        "local.hung_seconds": 3_600.0,
        "local.max_restarts": 100,
    }
    config = configured(tmp_path, updates=100_000, **settings)
    scrape = script("metrics_table").SCRAPE
    with prometheus(tmp_path, scrape, runs=["tiny"], interval="1s") as server:
        observed(config, server, break_one_after_the_other)


def test_first_dead_letter_fires_its_alert(tmp_path: Path):
    config = configured(tmp_path, updates=100_000, **{"policy.replicas": 2, "local.max_restarts": 100})

    def poisoned(spec: ProcessSpec) -> ProcessSpec:
        command = tuple(
            part.replace("services.policy", "tests.chaos.poisoned_policy") for part in spec.command
        )
        return replace(spec, command=command)

    async def wait(world: World) -> None:
        begun = time.time()
        await world.fires("FairleadDeadLetters", "policy_died", since=begun)
        assert world.fired(begun)["FairleadDeadLetters"] == {"policy_died"}

    scrape = script("metrics_table").SCRAPE
    with prometheus(tmp_path, scrape, runs=["tiny"], interval="1s") as server:
        observed(config, server, wait, change=poisoned)
