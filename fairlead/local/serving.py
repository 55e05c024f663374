"""Start policy and reward services on given models, call them, and stop them again.

For sampling and evaluation between the stages of a run, while nothing is trained. The services are those of
a cluster.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead.clients import AsyncPolicyClient, AsyncRewardClient
from fairlead.config import RunConfig
from fairlead.config.saving import save
from fairlead.data.chat import Chat, Prompt
from fairlead.errors import ProcessFailed
from fairlead.local.addresses import LOOPBACK, Ports, join_address
from fairlead.local.plan import base_environment
from fairlead.local.probes import GrpcHealth
from fairlead.local.process import ChildProcess, ProcessSpec, describe_exit
from fairlead.local.standby import Standby
from fairlead.types import FinishReason, SamplingParams, TextPair

_PROBE_SECONDS = 0.1
_IN_FLIGHT = 256
_SCORE_ITEMS = 256
_CALL_SECONDS = 600.0
"""Deadline of a call. It may wait for hundreds of others on a busy machine, and a service that has ended
refuses calls at once."""


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """A policy's answer to a prompt."""

    prompt: Prompt
    """The prompt."""
    text: str
    """Text of the answer."""
    ended: bool
    """False if the answer was cut off at the maximum length."""


@asynccontextmanager
async def serving(
    config: RunConfig, models: Mapping[str, Path], *, standby: Standby | None = None
) -> AsyncIterator[dict[str, str]]:
    """Run services on models, and stop them at the end of the block.

    Args:
        config: the run; its folder receives the logs.
        models: the model folder of each service, `policy` or `reward`.
        standby: processes that may run the services.

    Yields:
        The address of each service.

    Raises:
        ProcessFailed: a service ended, or was not ready in time; the message quotes its last log line.
    """
    ports = Ports()
    addresses = {name: join_address(LOOPBACK, ports.free(name)) for name in models}
    processes = [_process(config, name, path, addresses[name], standby) for name, path in models.items()]
    try:
        for process in processes:
            await process.start()
        await asyncio.gather(*(_ready(process, config.local.ready_seconds) for process in processes))
        yield addresses
    finally:
        await asyncio.gather(*(_stop(process, config.local.drain_seconds) for process in processes))


async def ask(
    address: str, prompts: Sequence[Prompt], *, samples: int, sampling: SamplingParams
) -> list[list[GeneratedAnswer]]:
    """Return `samples` answers of the policy service to each prompt; `sampling.seed` seeds all calls."""
    rng = random.Random(sampling.seed)
    seeds = [rng.getrandbits(62) for _ in prompts]
    in_flight = asyncio.Semaphore(max(1, _IN_FLIGHT // samples))

    async with AsyncPolicyClient(address, timeout_seconds=_CALL_SECONDS) as client:

        async def one(prompt: Prompt, seed: int) -> list[GeneratedAnswer]:
            async with in_flight:
                asked = prompt.messages if isinstance(prompt, Chat) else prompt
                found = await client.generate(asked, replace(sampling, seed=seed), num_samples=samples)
            return [
                GeneratedAnswer(prompt, one.text, one.finish_reason is FinishReason.STOP) for one in found
            ]

        return await asyncio.gather(*map(one, prompts, seeds))


async def score(address: str, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
    """Return the reward service's scores of (prompt, answer) pairs."""
    items = [
        TextPair("", text, messages=prompt.messages) if isinstance(prompt, Chat) else TextPair(prompt, text)
        for prompt, text in pairs
    ]
    async with AsyncRewardClient(address, timeout_seconds=_CALL_SECONDS) as client:
        parts = [items[start : start + _SCORE_ITEMS] for start in range(0, len(items), _SCORE_ITEMS)]
        found = [await client.score(part) for part in parts]
    return [value for part in found for value in part.scores]


def prepare(config: RunConfig, count: int, standby: Standby) -> None:
    """Start processes on standby for `count` services of `serving`."""
    standby.prepare(count, base_environment(config))


def _process(config: RunConfig, name: str, path: Path, address: str, standby: Standby | None) -> ChildProcess:
    section = getattr(config, name)
    settings = {"path": str(path.absolute()), "bind": address, "addresses": (address,), "replicas": 1}
    if name == "policy":
        settings["serve_initial"] = True
    reference = config.reference
    if reference.engine == "trainer":  # its path may name the policy that the run starts from, not this one
        reference = reference.model_copy(update={"path": ""})
    changed = config.model_copy(
        update={
            "reference": reference,
            name: section.model_copy(update=settings),
            "observe": config.observe.model_copy(update={"metrics_port": -1}),
            # Without weight versions in the store the service keeps the model at the path.
            "weights": config.weights.model_copy(update={"path": str(config.folder.root / "no_weights")}),
        }
    )
    file = config.folder.root / f"{name}_service.toml"
    save(changed, file)
    spec = ProcessSpec(
        name=f"{name}-asked",
        command=(sys.executable, "-m", f"services.{name}", "--config", str(file.absolute())),
        probe=GrpcHealth(address),
        loads_models=True,
    )
    return ChildProcess(
        spec,
        log=config.folder.log(spec.name),
        environment=base_environment(config),
        standby=standby,
    )


async def _ready(process: ChildProcess, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    probe = process.spec.probe
    assert probe is not None
    while not await probe():
        if process.pid is None:
            raise ProcessFailed(
                f"{process.name} ended with {describe_exit(await process.wait())}; last log line: "
                f"{process.last_log_line() or 'none'} (log: {process.log})"
            )
        if time.monotonic() > deadline:
            raise ProcessFailed(
                f"{process.name} was not ready within {seconds:g} s; last log line: "
                f"{process.last_log_line() or 'none'} (log: {process.log})"
            )
        await asyncio.sleep(_PROBE_SECONDS)
    process.mark_ready()


async def _stop(process: ChildProcess, seconds: float) -> None:
    if process.pid is None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
