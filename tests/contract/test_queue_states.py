"""Every transport keeps the rules of the protocol, whatever happens: memory and Valkey in a state machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from fairlead.local.valkey import ValkeyServer, running
from tests.contract.queue_mishaps import UnluckyQueueMachine
from tests.contract.queue_worlds import MemoryWorld, RedisWorld, World, restarting


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running(tmp_path_factory.mktemp("valkey")) as started:
        yield started


def drive(make_world: Callable[[], World], *, examples: int, steps: int, derandomize: bool = True) -> None:
    machine = type("Machine", (UnluckyQueueMachine,), {"make_world": staticmethod(make_world)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_memory_queue_keeps_its_rules_whatever_happens() -> None:
    drive(MemoryWorld, examples=150, steps=40)


def test_the_redis_queue_keeps_its_rules_whatever_happens(server: ValkeyServer) -> None:
    drive(lambda: RedisWorld(server), examples=50, steps=40)


def test_the_redis_queue_keeps_its_rules_through_restarts(tmp_path: Path) -> None:
    before = RedisWorld.restarts
    with ExitStack() as stack:
        drive(restarting(tmp_path, stack), examples=12, steps=40)
    assert RedisWorld.restarts > before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_queues_keep_their_rules_whatever_happens_for_long(server: ValkeyServer, tmp_path: Path) -> None:
    drive(MemoryWorld, examples=5000, steps=80, derandomize=False)
    drive(lambda: RedisWorld(server), examples=1500, steps=80, derandomize=False)
    with ExitStack() as stack:
        drive(restarting(tmp_path, stack), examples=150, steps=60, derandomize=False)
