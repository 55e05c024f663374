"""Model services for an example's own questions: started on a model, asked, stopped.

Between the stages of a run, when no training goes on. The services are the ones that a cluster runs.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fairlead.clients import AsyncPolicyClient, AsyncRewardClient
from fairlead.config import RunConfig
from fairlead.config.saving import save
from fairlead.errors import ProcessFailed
from fairlead.local.addresses import LOOPBACK, Ports, join_address
from fairlead.local.plan import base_environment
from fairlead.local.probes import GrpcHealth
from fairlead.local.process import ChildProcess, ProcessSpec, describe_exit
from fairlead.types import FinishReason, SamplingParams

_PROBE_SECONDS = 0.1
_IN_FLIGHT = 256
_SCORE_ITEMS = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy said to a prompt."""

    prompt: str
    """What was asked."""
    text: str
    """The answer."""
    ended: bool
    """False if it was cut off."""


@asynccontextmanager
async def serving(config: RunConfig, models: Mapping[str, Path]) -> AsyncIterator[dict[str, str]]:
    """Runs services on models, and stops them at the end of the block.

    Args:
        config: the run; logs go to its folder.
        models: model folder by service, `policy` or `reward`.

    Yields:
        The address of each.

    Raises:
        ProcessFailed: one ended, or was not ready in time; says what it said last.
    """
    ports = Ports()
    addresses = {name: join_address(LOOPBACK, ports.free(name)) for name in models}
    processes = [_process(config, name, path, addresses[name]) for name, path in models.items()]
    try:
        for process in processes:
            await process.start()
        await asyncio.gather(*(_ready(process, config.local.ready_seconds) for process in processes))
        yield addresses
    finally:
        await asyncio.gather(*(_stop(process, config.local.drain_seconds) for process in processes))


async def ask(
    address: str, prompts: Sequence[str], *, samples: int, sampling: SamplingParams
) -> list[list[Answer]]:
    """Answers of the policy service, `samples` to each prompt; `sampling.seed` seeds all calls."""
    rng = random.Random(sampling.seed)
    seeds = [rng.getrandbits(62) for _ in prompts]
    free = asyncio.Semaphore(max(1, _IN_FLIGHT // samples))

    async with AsyncPolicyClient(address) as client:

        async def one(prompt: str, seed: int) -> list[Answer]:
            params = SamplingParams(
                temperature=sampling.temperature, max_new_tokens=sampling.max_new_tokens, seed=seed
            )
            async with free:
                found = await client.generate(prompt, params, num_samples=samples)
            return [Answer(prompt, one.text, one.finish_reason is FinishReason.STOP) for one in found]

        return await asyncio.gather(*map(one, prompts, seeds))


async def score(address: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Scores of (prompt, answer) pairs by the reward service."""
    async with AsyncRewardClient(address) as client:
        parts = [pairs[start : start + _SCORE_ITEMS] for start in range(0, len(pairs), _SCORE_ITEMS)]
        found = [await client.score(part) for part in parts]
    return [value for part in found for value in part.scores]


def _process(config: RunConfig, name: str, path: Path, address: str) -> ChildProcess:
    section = getattr(config, name)
    settings = {"path": str(path.absolute()), "bind": address, "addresses": (address,), "replicas": 1}
    if name == "policy":
        settings["serve_initial"] = True
    changed = config.model_copy(
        update={
            name: section.model_copy(update=settings),
            "observe": config.observe.model_copy(update={"metrics_port": -1}),
            # A store without versions: the model at the path is what is asked.
            "weights": config.weights.model_copy(update={"path": str(config.folder.root / "no_weights")}),
        }
    )
    file = config.folder.root / f"{name}_service.toml"
    save(changed, file)
    spec = ProcessSpec(
        name=f"{name}-asked",
        command=(sys.executable, "-m", f"services.{name}", "--config", str(file.absolute())),
        probe=GrpcHealth(address),
    )
    return ChildProcess(spec, log=config.folder.log(spec.name), environment=base_environment(config))


async def _ready(process: ChildProcess, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    probe = process.spec.probe
    assert probe is not None
    while not await probe():
        if process.pid is None:
            raise ProcessFailed(
                f"{process.name} ended with {describe_exit(await process.wait())}, saying: "
                f"{process.last_log_line() or 'nothing'}; its log: {process.log}"
            )
        if time.monotonic() > deadline:
            raise ProcessFailed(
                f"{process.name} was not ready within {seconds:g} s, saying: "
                f"{process.last_log_line() or 'nothing'}; its log: {process.log}"
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
