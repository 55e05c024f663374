"""Every transport keeps the rules of the protocol under faults: a state machine drives memory and Valkey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from fairlead.local.valkey import ValkeyServer, running
from tests.contract.queue_mishaps import FaultyQueueMachine
from tests.contract.queue_worlds import MemoryWorld, RedisWorld, World, restarting


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running(tmp_path_factory.mktemp("valkey")) as started:
        yield started


def drive(make_world: Callable[[], World], *, examples: int, steps: int, derandomize: bool = True) -> None:
    machine = type("Machine", (FaultyQueueMachine,), {"make_world": staticmethod(make_world)})
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


def test_memory_queue_matches_model() -> None:
    drive(MemoryWorld, examples=80, steps=40)


def test_redis_queue_matches_model(server: ValkeyServer) -> None:
    drive(lambda: RedisWorld(server), examples=25, steps=40)


def test_redis_queue_matches_model_through_restarts(tmp_path: Path) -> None:
    before = RedisWorld.restarts
    with ExitStack() as stack:
        drive(restarting(tmp_path, stack), examples=6, steps=40)
    assert RedisWorld.restarts > before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_queues_match_model_in_many_long_examples(server: ValkeyServer, tmp_path: Path) -> None:
    drive(MemoryWorld, examples=5000, steps=80, derandomize=False)
    drive(lambda: RedisWorld(server), examples=1500, steps=80, derandomize=False)
    with ExitStack() as stack:
        drive(restarting(tmp_path, stack), examples=150, steps=60, derandomize=False)
