"""One run of tiny models under a schedule of faults: real supervisor, real processes, proxies between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.config import RunConfig, load
from fairlead.config.saving import save
from fairlead.local.restart_policy import RunOutcome
from fairlead.local.run import is_finished, processes
from fairlead.local.run_files import RunLock, read_progress
from fairlead.local.supervisor import Supervisor
from tests.chaos.caller import Caller, Text, oracle
from tests.chaos.faults import Fault
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
    "gateway.replicas": 1,
    "local.max_restarts": 1000,
    "local.hung_seconds": 15.0,
}


class Stuck(Exception):
    """The run made no progress for so long that it never will."""


Plan = Callable[[Sequence[str], Sequence[str]], Sequence[Fault]]
"""Names of processes and of links → the faults in their order."""


def run(folder: Path, plan: Plan, *, seed: int, updates: int, max_staleness: int, weights: str) -> Findings:
    """Makes a run, breaks it as planned, waits for its end and judges it.

    Args:
        folder: where the run and its models go.
        plan: says what strikes.
        seed: of what the gateway is asked; names the run in the findings.
        updates: how many; faults that come too late for them are a problem that is told.
        max_staleness: of the training.
        weights: how the policies get them: `filesystem`, `grpc`, or `direct`: over a connection beside gRPC
            that goes by the proxies.
    """
    transport = "filesystem" if weights == "filesystem" else "grpc"
    settings = _SETTINGS | {"weights.transport": transport, "weights.direct": weights == "direct"}
    config = configured(folder, updates=updates, max_staleness=max_staleness, **settings)
    scores, began = oracle(folder / "reward"), time.monotonic()
    with RunLock(config.folder):
        save(config, config.folder.config)
        broken = asyncio.run(_run(config, plan, scores, seed=seed))
    found = judge(config, broken.injector.strikes, seed=seed, caller=broken.caller)
    found.seconds = time.monotonic() - began
    if found.faults < len(broken.plan):
        found.problems.append(f"only {found.faults} of {len(broken.plan)} faults struck before the end")
    if broken.unanswered_seconds > _STUCK_SECONDS:
        found.problems.append(f"the gateway gave no score for {broken.unanswered_seconds:.0f} s")
    return found


@dataclass(frozen=True, slots=True)
class _Broken:
    """A run that was broken, and has ended."""

    plan: Sequence[Fault]
    injector: Injector
    caller: Caller
    unanswered_seconds: float
    """The longest time in which the gateway gave no right answer."""


def configured(folder: Path, *, updates: int, max_staleness: int = 0, **settings: object) -> RunConfig:
    """The configuration of a tiny run in a folder, with its models and prompts."""
    file = make(folder, updates=updates, max_staleness=max_staleness)
    models = {"policy.path": "policy", "reference.path": "policy", "reward.path": "reward", "runs": "runs"}
    places = {key: str(folder / name) for key, name in models.items()}
    return load(file, overrides={**places, **settings})


async def _run(config: RunConfig, plan: Plan, scores: Mapping[Text, float], *, seed: int) -> _Broken:
    specs, environment = processes(config, "ppo")
    specs, proxies = await wired(specs, environment)
    faults = plan([spec.name for spec in specs], list(proxies))
    supervisor = Supervisor(
        specs,
        local=config.local,
        folder=config.folder,
        environment=environment,
        stage="ppo",
        finished=lambda: is_finished(config, "ppo"),
    )
    injector = Injector(supervisor, proxies, redis_url=environment[REDIS_URL], update=lambda: _step(config))
    caller = Caller(proxies["caller to gateway-0"].address, scores, seed=seed)
    running = asyncio.ensure_future(supervisor.run())
    breaking = asyncio.ensure_future(_break(injector, faults, config, supervisor))
    watching = asyncio.ensure_future(_watch(config))
    asking = asyncio.ensure_future(caller.run())
    every = {running, breaking, watching, asking}
    try:
        while not running.done():
            # Each of the others ends early only by what must not be.
            done, _ = await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
            every -= done
            if watching in done:
                supervisor.stop(RunOutcome(1, "stuck"))
                await running
            for task in done:
                task.result()
        unanswered = caller.longest_without(until=time.time())
        outcome = running.result()
        if outcome.code:
            raise Stuck(f"the run ended with {outcome.code}: {outcome.message}")
        return _Broken(faults, injector, caller, unanswered)
    finally:
        for task in (running, breaking, watching, asking):
            task.cancel()
        await asyncio.gather(running, breaking, watching, asking, return_exceptions=True)
        await injector.mend()
        for proxy in proxies.values():
            await proxy.cut()


async def _break(
    injector: Injector, plan: Sequence[Fault], config: RunConfig, supervisor: Supervisor
) -> None:
    while not all(process.was_ready for process in supervisor.processes):  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)
    await _until(config, 2)
    for fault in plan:
        await _until(config, _step(config) + fault.after_updates)
        await asyncio.sleep(4 * _LOOK_SECONDS)
        logger.info("update %d of %d, fault %s", _step(config), config.ppo.updates, fault)
        await injector.strike(fault)


def _step(config: RunConfig) -> int:
    now = read_progress(config.folder.progress)
    return now.step if now else 0


async def _until(config: RunConfig, step: int) -> None:
    while _step(config) < step:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


async def _watch(config: RunConfig) -> None:
    """Returns never; raises when nothing moves."""
    step, since = -1, time.monotonic()
    while True:
        now = read_progress(config.folder.progress)
        if now is not None and now.step != step:
            step, since = now.step, time.monotonic()
        if time.monotonic() - since > _STUCK_SECONDS:
            raise Stuck(f"no update for {_STUCK_SECONDS:g} s: {now}")
        await asyncio.sleep(_LOOK_SECONDS)
