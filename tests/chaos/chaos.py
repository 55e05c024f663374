"""One run of tiny models under a schedule of faults: real supervisor, processes and proxies."""

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
from fairlead.local.run_files import RunLock, read_progress
from fairlead.local.supervisor import Supervisor
from tests.chaos.caller import Caller, Text, oracle
from tests.chaos.faults import Fault
from tests.chaos.findings import Findings, check_run
from tests.chaos.injector import RANK, Injector
from tests.chaos.wiring import step, wired
from tests.integration.ppo_run import make
from tests.integration.rank_faults import limit_factor

logger = logging.getLogger(__name__)

_STUCK_SECONDS = 180.0 * limit_factor()
_POLL_SECONDS = 0.05
_SETTINGS = {
    "policy.replicas": 2,
    "rollout_worker.replicas": 2,
    "gateway.replicas": 1,
    "local.max_restarts": 1000,
    "local.hung_seconds": 15.0 * limit_factor(),
    "ranks.lost_seconds": 15.0 * limit_factor(),
}


class Stuck(Exception):
    """The run made no progress for too long."""


Plan = Callable[[Sequence[str], Sequence[str]], Sequence[Fault]]
"""Names of processes and of links → the faults in order."""


def run(
    folder: Path,
    plan: Plan,
    *,
    seed: int,
    updates: int,
    max_staleness: int,
    weights: str,
    further: Mapping[str, object] | None = None,
) -> Findings:
    """Start a run, inject the planned faults, wait for the end of the run and check it.

    Args:
        folder: folder for the run and its models.
        plan: returns the faults.
        seed: seed of the requests to the gateway; also names the run in the findings.
        updates: number of updates; faults that are planned after the last one are reported as a problem.
        max_staleness: of the training.
        weights: how policies get weights: `filesystem`, `grpc`, or `direct`: over direct connections, which
            bypass the proxies.
        further: other settings by dotted key. Of several ranks of the trainer, each is a target of faults
            besides their launcher, `trainer`.
    """
    transport = "filesystem" if weights == "filesystem" else "grpc"
    settings = _SETTINGS | {
        "weights.transport": transport,
        "weights.direct": weights == "direct",
        **(further or {}),
    }
    config = configured(folder, updates=updates, max_staleness=max_staleness, **settings)
    scores = oracle(folder / "reward")
    began = time.monotonic()
    with RunLock(config.folder):
        save(config, config.folder.config)
        broken = asyncio.run(_run(config, plan, scores, seed=seed))
    found = check_run(config, broken.injector.injected, seed=seed, caller=broken.caller)
    found.seconds = time.monotonic() - began
    if found.faults < len(broken.plan):
        found.problems.append(
            f"only {found.faults} of {len(broken.plan)} faults were injected before the end"
        )
    if broken.unanswered_seconds > _STUCK_SECONDS:
        found.problems.append(f"the gateway returned no score for {broken.unanswered_seconds:.0f} s")
    return found


@dataclass(frozen=True, slots=True)
class _EndedRun:
    """A run under faults that has ended."""

    plan: Sequence[Fault]
    injector: Injector
    caller: Caller
    unanswered_seconds: float
    """The longest time in which the gateway returned no right score."""


def configured(folder: Path, *, updates: int, max_staleness: int = 0, **settings: object) -> RunConfig:
    """Create a tiny run in a folder, with models and prompts; return its configuration."""
    file = make(folder, updates=updates, max_staleness=max_staleness)
    models = {"policy.path": "policy", "reference.path": "policy", "reward.path": "reward", "runs": "runs"}
    places = {key: str(folder / name) for key, name in models.items()}
    return load(file, overrides={**places, **settings})


async def _run(config: RunConfig, plan: Plan, scores: Mapping[Text, float], *, seed: int) -> _EndedRun:
    run = await wired(config)
    supervisor, proxies = run.supervisor, run.proxies
    ranks = [f"{RANK}{number}" for number in range(config.ranks.per_node)]
    targets = [*(process.name for process in supervisor.processes), *(ranks if len(ranks) > 1 else ())]
    faults = plan(targets, list(proxies))
    injector = Injector(supervisor, proxies, redis_url=run.redis_url, update=lambda: step(config))
    caller = Caller(proxies["caller to gateway-0"].address, scores, seed=seed)
    running = asyncio.ensure_future(supervisor.run())
    breaking = asyncio.ensure_future(_break(injector, faults, config, supervisor))
    watching = asyncio.ensure_future(_watch(config))
    asking = asyncio.ensure_future(caller.run())
    unfinished = {running, breaking, watching, asking}
    try:
        while not running.done():
            # The other tasks end early only with an error.
            done, _ = await asyncio.wait(unfinished, return_when=asyncio.FIRST_COMPLETED)
            unfinished -= done
            if watching in done:
                supervisor.stop(RunOutcome(1, "stuck"))
                await running
            for task in done:
                task.result()
        unanswered = caller.longest_without(until=time.time())
        outcome = running.result()
        if outcome.code:
            raise Stuck(f"the run ended with {outcome.code}: {outcome.message}")
        return _EndedRun(faults, injector, caller, unanswered)
    finally:
        for task in (running, breaking, watching, asking):
            task.cancel()
        await asyncio.gather(running, breaking, watching, asking, return_exceptions=True)
        await injector.wait_healed()
        for proxy in proxies.values():
            await proxy.cut()


async def _break(
    injector: Injector, plan: Sequence[Fault], config: RunConfig, supervisor: Supervisor
) -> None:
    while not all(process.was_ready for process in supervisor.processes):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)
    await _until(config, 2)
    for fault in plan:
        await _until(config, step(config) + fault.after_updates)
        await asyncio.sleep(4 * _POLL_SECONDS)
        logger.info("update %d of %d, fault %s", step(config), config.ppo.updates, fault)
        await injector.inject(fault)


async def _until(config: RunConfig, update: int) -> None:
    while step(config) < update:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)


async def _watch(config: RunConfig) -> None:
    """Raise Stuck when no update is done for too long; never return."""
    step = -1
    since = time.monotonic()
    while True:
        now = read_progress(config.folder.progress)
        if now is not None and now.step != step:
            step = now.step
            since = time.monotonic()
        if time.monotonic() - since > _STUCK_SECONDS:
            raise Stuck(f"no update for {_STUCK_SECONDS:g} s: {now}")
        await asyncio.sleep(_POLL_SECONDS)
