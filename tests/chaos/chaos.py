"""One run of tiny models under a schedule of faults: real supervisor, real processes, proxies between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from fairlead.config import RunConfig, load
from fairlead.config.saving import save
from fairlead.local import progress
from fairlead.local.lock import RunLock
from fairlead.local.run import is_finished, processes
from fairlead.local.supervisor import Supervisor
from fairlead.local.verdict import Outcome
from tests.chaos.faults import Fault, schedule
from tests.chaos.findings import Findings, judge
from tests.chaos.injector import Injector
from tests.chaos.wiring import REDIS_URL, wired
from tests.integration.ppo_run import make

logger = logging.getLogger(__name__)

_STUCK_SECONDS = 180.0
_LOOK_SECONDS = 0.05
_SETTINGS = {
    "policy.replicas": 2,
    "rollout_worker.replicas": 2,
    "local.max_restarts": 1000,
    "local.hung_seconds": 15.0,
}


class Stuck(Exception):
    """The run made no progress for so long that it never will."""


def run(folder: Path, *, seed: int, faults: int, max_staleness: int) -> Findings:
    """Makes a run, breaks it by the seed's schedule, waits for its end and judges it."""
    # As many updates as the schedule needs, and some for what passes before a fault is seen to.
    config = configured(folder, updates=12 + 6 * faults, max_staleness=max_staleness, **_SETTINGS)
    began = time.monotonic()
    with RunLock(config.folder):
        save(config, config.folder.config)
        strikes = asyncio.run(_run(config, seed=seed, faults=faults))
    found = judge(config, strikes.strikes, seed=seed)
    found.seconds = time.monotonic() - began
    if found.faults < faults:
        found.problems.append(f"only {found.faults} of {faults} faults struck before the end")
    return found


def configured(folder: Path, *, updates: int, max_staleness: int = 0, **settings: object) -> RunConfig:
    """The configuration of a tiny run in a folder, with its models and prompts."""
    file = make(folder, updates=updates, max_staleness=max_staleness)
    models = {"policy.path": "policy", "reference.path": "policy", "reward.path": "reward", "runs": "runs"}
    places = {key: str(folder / name) for key, name in models.items()}
    return load(file, overrides={**places, **settings})


async def _run(config: RunConfig, *, seed: int, faults: int) -> Injector:
    specs, environment = processes(config, "ppo")
    specs, proxies = await wired(specs, environment)
    supervisor = Supervisor(
        specs,
        local=config.local,
        folder=config.folder,
        environment=environment,
        stage="ppo",
        finished=lambda: is_finished(config, "ppo"),
    )

    def update() -> int:
        now = progress.read(config.folder.progress)
        return now.step if now else 0

    injector = Injector(supervisor, proxies, redis_url=environment[REDIS_URL], update=update)
    plan = schedule(seed, count=faults, processes=[spec.name for spec in specs], links=list(proxies))
    running = asyncio.ensure_future(supervisor.run())
    breaking = asyncio.ensure_future(_break(injector, plan, config))
    watching = asyncio.ensure_future(_watch(config))
    try:
        await asyncio.wait({running, watching, breaking}, return_when=asyncio.FIRST_COMPLETED)
        if breaking.done():
            breaking.result()
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            supervisor.stop(Outcome(1, "stuck"))
            await running
            watching.result()
        outcome = running.result()
        if outcome.code:
            raise Stuck(f"the run ended with {outcome.code}: {outcome.message}")
        return injector
    finally:
        for task in (running, breaking, watching):
            task.cancel()
        await asyncio.gather(running, breaking, watching, return_exceptions=True)
        await injector.mend()
        for proxy in proxies.values():
            await proxy.cut()


async def _break(injector: Injector, plan: Sequence[Fault], config: RunConfig) -> None:
    await _until(config, 2)
    for fault in plan:
        now = progress.read(config.folder.progress)
        await _until(config, (now.step if now else 0) + fault.after_updates)
        await asyncio.sleep(4 * _LOOK_SECONDS)
        logger.info("fault %s", fault)
        await injector.strike(fault)


async def _until(config: RunConfig, step: int) -> None:
    while (now := progress.read(config.folder.progress)) is None or now.step < step:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


async def _watch(config: RunConfig) -> None:
    """Returns never; raises when nothing moves."""
    step, since = -1, time.monotonic()
    while True:
        now = progress.read(config.folder.progress)
        if now is not None and now.step != step:
            step, since = now.step, time.monotonic()
        if time.monotonic() - since > _STUCK_SECONDS:
            raise Stuck(f"no update for {_STUCK_SECONDS:g} s: {now}")
        await asyncio.sleep(_LOOK_SECONDS)
