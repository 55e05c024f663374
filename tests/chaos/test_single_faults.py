"""One fault at a time, with real processes, and its exact effect."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from fairlead.config import RunConfig
from fairlead.config.saving import save
from fairlead.local.process import ProcessSpec
from fairlead.local.restart_policy import RunOutcome
from fairlead.local.run_files import RunLock
from fairlead.local.supervisor import Supervisor
from tests.chaos.chaos import configured
from tests.chaos.findings import check_run
from tests.chaos.poisoned_policy import POISON
from tests.chaos.proxy import Proxy
from tests.chaos.wiring import step, wired
from tests.integration.ppo_run import check, started
from tests.waiting import until

# Every start of a process costs seconds of torch; on a busy machine many.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Fault = Callable[[Supervisor, dict[str, Proxy]], Awaitable[None]]


async def nothing(supervisor: Supervisor, proxies: dict[str, Proxy]) -> None:
    """Inject no fault; the processes have one built in."""


def pid_of(supervisor: Supervisor, name: str) -> int:
    pid = next(process.pid for process in supervisor.processes if process.name == name)
    assert pid is not None
    return pid


def supervised(
    config: RunConfig, fault: Fault = nothing, *, change: Callable[[ProcessSpec], ProcessSpec] = lambda s: s
) -> Supervisor:
    """Run to the end while a fault is injected."""

    async def work() -> Supervisor:
        run = await wired(config, change=change)
        supervisor, proxies = run.supervisor, run.proxies
        running = asyncio.ensure_future(supervisor.run())
        try:
            await fault(supervisor, proxies)
            assert await asyncio.wait_for(running, 400) == RunOutcome(0, "trainer has finished")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            for proxy in proxies.values():
                await proxy.cut()
        return supervisor

    with RunLock(config.folder):
        save(config, config.folder.config)
        return asyncio.run(work())


def dead(config: RunConfig) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in config.folder.ledger.read_text().splitlines()]
    return [line for line in lines if line["event"] == "dead_letter"]


def test_prompt_that_kills_policy_is_dead_lettered(tmp_path: Path):
    config = configured(tmp_path, updates=5, **{"policy.replicas": 2, "rollout_worker.replicas": 2})

    def poisoned(spec: ProcessSpec) -> ProcessSpec:
        command = tuple(
            part.replace("services.policy", "tests.chaos.poisoned_policy") for part in spec.command
        )
        return replace(spec, command=command)

    run = supervised(config, change=poisoned)
    # 40 prompts, one of them with the poison, and 40 tasks: it is sent once.
    [letter] = dead(config)
    assert letter["reason"] == "policy_died"
    assert letter["failures"] == 2
    restarts = sum(process.restarts for process in run.processes if process.name.startswith("policy"))
    assert restarts == 5, "two shared calls, three exclusive ones"
    found = check_run(config, seed=0)
    assert (found.problems, found.dead) == ([], 1)
    assert POISON == 59


@pytest.mark.parametrize("service", ["reward", "reference"])
def test_prompt_that_kills_scorer_is_dead_lettered_and_no_other(tmp_path: Path, service: str):
    config = configured(tmp_path, updates=5, **{"rollout_worker.replicas": 2, "local.max_restarts": 20})

    def poisoned(spec: ProcessSpec) -> ProcessSpec:
        command = list(spec.command)
        if f"services.{service}" in command:
            at = command.index(f"services.{service}")
            command[at : at + 1] = ["tests.chaos.poisoned_scorer", service]
        return replace(spec, command=tuple(command))

    run = supervised(config, change=poisoned)
    # 40 prompts, one of them the poison, and 40 tasks: it is sent once.
    [letter] = dead(config)
    assert letter["reason"] == f"{service}_died"
    assert letter["failures"] == 2
    restarts = sum(process.restarts for process in run.processes if process.name.startswith(service))
    assert restarts in (4, 5), (
        "one shared call, perhaps the exclusive call of its batch, three exclusive ones"
    )
    found = check_run(config, [], seed=0)
    assert (found.problems, found.dead) == ([], 1)


def test_reward_nan_dead_letters_tasks_and_never_reaches_weights(tmp_path: Path):
    config = configured(tmp_path, updates=5)

    def damaged(spec: ProcessSpec) -> ProcessSpec:
        command = tuple(
            part.replace("services.reward", "tests.chaos.damaged_reward") for part in spec.command
        )
        return replace(spec, command=command)

    supervised(config, change=damaged)
    letters = dead(config)
    assert 0 < len(letters) < config.ppo.updates * config.ppo.tasks_per_update
    assert {letter["reason"] for letter in letters} == {"service_error"}
    assert all("returned nan" in str(letter["detail"]) for letter in letters)
    found = check_run(config, seed=0)
    assert (found.problems, found.dead) == ([], len(letters))
    trained = load_file(config.folder.policy_model / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())


async def ten_updates(config: RunConfig) -> float:
    """Wait for ten updates after the fifth; return how many seconds they took."""
    await until(lambda: step(config) >= 5, seconds=120)
    before, began = step(config), time.monotonic()
    await until(lambda: step(config) >= before + 10, seconds=120)
    return time.monotonic() - began


TWO = {"policy.replicas": 2, "local.hung_seconds": 3_600.0}


def test_hanging_policy_does_not_delay_the_run(tmp_path: Path):
    config = configured(tmp_path, updates=60, **TWO)

    async def hang(supervisor: Supervisor, proxies: dict[str, Proxy]) -> None:
        undisturbed_seconds = await ten_updates(config)
        pid = pid_of(supervisor, "policy-0")
        os.kill(pid, signal.SIGSTOP)
        # gRPC itself closes the connection after 15 s.
        assert await ten_updates(config) < max(14, 4 * undisturbed_seconds)
        assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
        os.kill(pid, signal.SIGCONT)

    supervised(config, hang)
    assert check_run(config, seed=0).problems == []


def test_slow_policy_does_not_delay_the_run(tmp_path: Path):
    config = configured(tmp_path, updates=60, **TWO)

    async def slow_down(supervisor: Supervisor, proxies: dict[str, Proxy]) -> None:
        undisturbed_seconds = await ten_updates(config)
        slow = proxies["rollout-worker-0 to policy-0"]
        slow.latency_seconds = 2.0
        # Ten updates that wait for it would take 40 s more.
        assert await ten_updates(config) < max(30, 4 * undisturbed_seconds)
        await slow.heal()

    supervised(config, slow_down)
    assert check_run(config, seed=0).problems == []


_FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
_CLOCKS = {
    "valkey": "+3h",
    "trainer": "-2d",
    "policy-0": "+20d",
    "reward-0": "-400d",
    "reference-0": "-5m",
    "weights-0": "+7h",
    "rollout-worker-0": "-1h",
    "rollout-worker-1": "+5h",
}


@pytest.mark.skipif(
    _FAKETIME is None, reason="needs libfaketime (Debian and Ubuntu: apt install libfaketime)"
)
def test_skewed_clocks_have_no_effect(tmp_path: Path):
    """Leases, fences and lineages use Redis's clock or none; dead processes are still detected in time."""
    more = {"rollout_worker.replicas": 2, "weights.transport": "grpc"}
    config = configured(tmp_path, updates=60, max_staleness=1, **more)

    def skewed(spec: ProcessSpec) -> ProcessSpec:
        clock = {
            "LD_PRELOAD": str(_FAKETIME),
            "FAKETIME": _CLOCKS[spec.name],
            # The monotonic clock of a kernel never jumps.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return replace(spec, environment={**spec.environment, **clock})

    async def kill(supervisor: Supervisor, proxies: dict[str, Proxy]) -> None:
        for name in ("rollout-worker-0", "rollout-worker-1", "valkey", "trainer"):
            before = step(config)
            await until(lambda before=before: step(config) >= before + 5, seconds=120)
            os.kill(pid_of(supervisor, name), signal.SIGKILL)

    supervised(config, kill, change=skewed)
    lines = [json.loads(line) for line in config.folder.ledger.read_text().splitlines()]
    # The skew was in effect: the trainer's journal is two days old.
    assert {round((time.time() - line["time"]) / 86_400) for line in lines} == {2}
    found = check_run(config, seed=0)
    assert (found.problems, found.dead) == ([], 0)


@contextmanager
def second_trainer(config: Path, first: psutil.Process) -> Iterator[subprocess.Popen[str]]:
    environment = first.environ() | {"FAIRLEAD_OBSERVE__METRICS_PORT": "0"}
    command = [sys.executable, "-m", "trainer.ppo", "--config", str(config)]
    second = subprocess.Popen(command, env=environment, cwd=first.cwd(), stderr=subprocess.PIPE, text=True)
    try:
        yield second
    finally:
        second.kill()
        second.communicate()


def test_paused_trainer_is_fenced_off_and_the_run_continues(tmp_path: Path):
    file = tmp_path / "run.toml"
    configured(tmp_path, updates=4_000)
    with started(file) as run:
        run.until(lambda: run.step() >= 3)
        first = psutil.Process(run.pids()["trainer"])
        first.suspend()
        with second_trainer(run.folder.config, first):
            claimed = run.folder.checkpoints / "incarnation-2.resumed-from.json"
            run.until(claimed.exists)
            resumed = json.loads(claimed.read_text())["resumed_from"]
            run.until(lambda: run.step() >= resumed + 4)
            first.resume()
            code, output = run.finish()
        assert code == 3, output + run.log_tails()
        assert "another trainer took over this run" in output
        # The second trainer continued until it was killed, at the speed of the machine.
        done = run.step()
    with started(file, "--set", f"ppo.updates={done + 20}") as run:
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        steps = [json.loads(line)["step"] for line in run.folder.metrics("ppo").read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1))
        check(run.folder)
