"""Replicas, retries, budget and deadline against real gRPC servers in this process."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry

from fairlead.clients import AsyncPolicyClient, AsyncRewardClient
from fairlead.errors import (
    ConfigError,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    Overloaded,
    StaleWeights,
    Unavailable,
)
from fairlead.metrics import ClientMetrics
from fairlead.rpc.retry import RetryBudget, RetryPolicy
from fairlead.types import SamplingParams
from fairlead.v1 import policy_service_pb2_grpc
from tests.metric_values import total
from tests.unit.fairlead.rpc.rpc_world import FAST, Replica, Streamer, dead_address, serving

MANY_ATTEMPTS = RetryPolicy(max_attempts=200, initial_backoff_seconds=0.05, max_backoff_seconds=0.2)
ITEM = [("a", "b")]


@pytest.fixture
def silent_address():
    """Accepts connections and never sends a byte."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def raising(error: Exception, *, times: int = 10**9) -> Callable[[int], Awaitable[None]]:
    async def behave(call: int) -> None:
        if call <= times:
            raise error

    return behave


async def names(client: AsyncRewardClient, count: int) -> list[str]:
    return [(await client.score(ITEM)).model_version for _ in range(count)]


async def test_calls_are_spread_over_the_replicas():
    a, b, c = Replica("a"), Replica("b"), Replica("c")
    async with serving(a) as at_a, serving(b) as at_b, serving(c) as at_c:
        async with AsyncRewardClient([at_a, at_b, at_c]) as client:
            async with asyncio.timeout(10):
                while not all(one.calls for one in (a, b, c)):
                    await names(client, 1)
            before = a.calls, b.calls, c.calls
            await names(client, 30)
            assert [now - then for now, then in zip((a.calls, b.calls, c.calls), before, strict=True)] == [
                10
            ] * 3


@pytest.mark.parametrize("kind", ["dead", "silent"])
async def test_dead_address_does_not_delay_calls(kind, silent_address):
    dead = dead_address() if kind == "dead" else silent_address
    async with serving(Replica("alive")) as alive, AsyncRewardClient([dead, alive], retry=FAST) as client:
        # A call that waited for the dead address would take a second or more.
        async with asyncio.timeout(25):
            assert await names(client, 50) == ["alive"] * 50


async def test_unreachable_replicas_raise_unavailable_with_address_and_reason():
    address = dead_address()
    async with AsyncRewardClient(address, retry=FAST) as client:
        with pytest.raises(Unavailable, match=f"reward at {address}: .*Connection refused.*after 6 attempts"):
            await client.score(ITEM)


async def test_restarted_replica_is_found():
    address = dead_address()
    async with AsyncRewardClient(address, retry=MANY_ATTEMPTS, timeout_seconds=20) as client:
        port = int(address.rpartition(":")[2])
        waiting = asyncio.create_task(client.score(ITEM))
        async with serving(Replica("first"), port=port):
            assert (await waiting).model_version == "first"
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await client.score(ITEM, timeout_seconds=0.5)
        async with serving(Replica("second"), port=port):
            assert (await client.score(ITEM)).model_version == "second"


async def test_replica_that_is_not_serving_gets_no_calls():
    a, b = Replica("a"), Replica("b")
    async with serving(a) as at_a, serving(b) as at_b, AsyncRewardClient([at_a, at_b]) as client:
        async with asyncio.timeout(10):
            while not (a.calls and b.calls):
                await names(client, 1)
        a.health.set_serving(False)
        async with asyncio.timeout(10):
            while await names(client, 4) != ["b"] * 4:
                pass
        a.health.set_serving(True)
        async with asyncio.timeout(10):
            while "a" not in await names(client, 4):
                pass


async def test_stale_weights_are_retried_on_another_replica():
    stale, fresh = Replica("stale", raising(StaleWeights("has 1-2, 1-3 was requested"))), Replica("fresh")
    async with serving(stale) as at_stale, serving(fresh) as at_fresh:
        async with AsyncRewardClient([at_stale, at_fresh], retry=FAST) as client:
            assert await names(client, 20) == ["fresh"] * 20
    assert stale.calls > 0
    async with serving(stale) as only, AsyncRewardClient(only, retry=FAST) as client:
        with pytest.raises(
            StaleWeights, match=r"has 1-2, 1-3 was requested \(FAILED_PRECONDITION after 6 attempts"
        ):
            await client.score(ITEM)


async def test_overloaded_replica_gets_no_calls_before_its_retry_delay():
    moments: list[float] = []
    delay_seconds = 0.4

    async def behave(call: int) -> None:
        moments.append(time.monotonic())
        if call == 1:
            raise Overloaded("queue is full", retry_after_seconds=delay_seconds)

    full = Replica("full", behave)
    async with serving(full) as address, AsyncRewardClient(address, retry=FAST) as client:
        assert await names(client, 1) == ["full"]
        assert moments[1] - moments[0] >= 0.39
        full.calls, delay_seconds = 0, 60.0
        with pytest.raises(Overloaded, match="queue is full; try again in 60 s") as refused:
            await client.score(ITEM, timeout_seconds=20)
        assert refused.value.retry_after_seconds == 60
        free = Replica("free")
        async with serving(free) as other, AsyncRewardClient([address, other], retry=FAST) as both:
            full.calls, delay_seconds = 0, 3_600.0
            assert await names(both, 10) == ["free"] * 10
            assert full.calls <= 1


async def test_retry_delay_of_one_server_does_not_hold_a_shared_name():
    async def behave(call: int) -> None:
        if call == 1:
            raise Overloaded("queue is full", retry_after_seconds=30)

    replica = Replica("r", behave)
    async with (
        serving(replica) as address,
        AsyncRewardClient(f"dns:///{address}", retry=FAST, timeout_seconds=60) as client,
    ):
        refused = asyncio.create_task(client.score(ITEM))
        while not replica.calls:  # noqa: ASYNC110 - conditions of the server
            await asyncio.sleep(0)
        await names(client, 5)
        assert not refused.done()
        refused.cancel()
        with pytest.raises(asyncio.CancelledError):
            await refused


async def test_attempt_that_hangs_is_retried_after_its_timeout():
    async def behave(call: int) -> None:
        if call == 1:
            await asyncio.sleep(3600)

    hangs = Replica("hangs", behave)
    policy = RetryPolicy(attempt_timeout_seconds=0.3, initial_backoff_seconds=0.01)
    async with serving(hangs) as address, AsyncRewardClient(address, retry=policy) as client:
        start = time.monotonic()
        assert await names(client, 1) == ["hangs"]
        assert time.monotonic() - start >= 0.3
    assert hangs.calls == 2


async def test_call_that_no_replica_accepts_ends_at_its_deadline(silent_address):
    async with AsyncRewardClient(silent_address, retry=FAST) as client:
        with pytest.raises(DeadlineExceeded, match=r"no replica accepted the call within 0\.2 s"):
            await client.score(ITEM, timeout_seconds=0.2)


async def test_call_ends_at_its_deadline():
    async def behave(call: int) -> None:
        await asyncio.sleep(3600)

    async with serving(Replica("slow", behave)) as address, AsyncRewardClient(address) as client:
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="reward at"):
            await client.score(ITEM, timeout_seconds=0.3)
        assert time.monotonic() - start > 0.25


@pytest.mark.parametrize(
    ("first_seconds", "timeout_seconds", "error", "reason"),
    [
        (1.2, 2.2, StaleWeights, "has 1-2, 1-3 was requested"),
        (0.0, 0.5, DeadlineExceeded, "DEADLINE_EXCEEDED after 2 attempts"),
    ],
)
async def test_error_at_the_deadline_is_that_of_the_longest_attempt(
    first_seconds, timeout_seconds, error, reason
):
    async def behave(call: int) -> None:
        await asyncio.sleep(first_seconds if call == 1 else 3600)
        raise StaleWeights("has 1-2, 1-3 was requested")

    async with serving(Replica("stale", behave)) as only, AsyncRewardClient(only, retry=FAST) as client:
        with pytest.raises(error, match=reason):
            await client.score(ITEM, timeout_seconds=timeout_seconds)


@pytest.mark.parametrize(
    ("raised", "seen", "message"),
    [
        (InvalidInput("items", got=0, allowed="x", index=3), InvalidInput, "items[3]: got 0, allowed: x"),
        (RuntimeError("secret path"), InternalError, "internal error"),
    ],
)
async def test_errors_that_are_not_transient_are_not_retried(raised, seen, message):
    replica = Replica("r", raising(raised))
    async with serving(replica) as address, AsyncRewardClient(address, retry=FAST) as client:
        with pytest.raises(seen) as caught:
            await client.score(ITEM)
    assert replica.calls == 1
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    if isinstance(caught.value, InvalidInput):
        assert (caught.value.field, caught.value.index, caught.value.allowed) == ("items", 3, "x")


async def test_message_that_is_too_large_raises_invalid_input():
    replica = Replica("r")
    async with serving(replica, max_receive_message_length=1000) as address:
        async with AsyncRewardClient(address, retry=FAST) as client:
            with pytest.raises(
                InvalidInput, match="^request: got '20.. bytes', allowed: at most 1000 bytes$"
            ):
                await client.score([("a" * 2000, "b")])
    assert replica.calls == 0


async def test_values_that_do_not_fit_a_message_are_refused_before_the_call():
    async with AsyncRewardClient(dead_address()) as client:
        with pytest.raises(InvalidInput, match="items: got"):
            await client.score([("\ud800", "b")])
        with pytest.raises(InvalidInput, match=r"\(prompt, response\)"):
            await client.score([("a", "b", "c")])  # type: ignore[list-item]


async def test_cancelled_call_is_cancelled_on_the_server():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def behave(call: int) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    replica = Replica("r", behave)
    async with serving(replica) as address, AsyncRewardClient(address) as client:
        call = asyncio.create_task(client.score(ITEM))
        async with asyncio.timeout(10):
            await begun.wait()
            call.cancel()
            await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize("while_they", ["retry", "connect"])
async def test_calls_end_when_their_client_is_closed_and_do_not_connect_again(while_they, silent_address):
    replica = Replica("r", raising(Unavailable("loading")))
    policy = RetryPolicy(
        max_attempts=1000, initial_backoff_seconds=1, max_backoff_seconds=1, budget_tokens=1000
    )
    async with serving(replica) as address:
        client = AsyncRewardClient(
            address if while_they == "retry" else silent_address, retry=policy, timeout_seconds=60
        )
        calls = [asyncio.create_task(client.score(ITEM)) for _ in range(20)]
        async with asyncio.timeout(30):
            while not (replica.calls >= 20 if while_they == "retry" else client._replicas._replicas):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await client.close()
        async with asyncio.timeout(4):  # a call waits longer for a connection
            ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, RuntimeError | asyncio.CancelledError) for end in ends)
        assert any("this client is closed" in str(end) for end in ends)
        with pytest.raises(RuntimeError, match="this client is closed"):
            await client.score(ITEM)
        assert not client._replicas._replicas


async def test_budget_limits_the_retries_of_all_calls():
    replica = Replica("r", raising(Unavailable("loading")))
    policy = RetryPolicy(
        max_attempts=10, initial_backoff_seconds=0.001, budget_tokens=15, budget_per_second=0.001
    )
    async with serving(replica) as address, AsyncRewardClient(address, retry=policy) as client:
        results = await asyncio.gather(*(client.score(ITEM) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert replica.calls == 10 + 15


def test_budget_fills_with_time_and_success():
    now = 0.0
    budget = RetryBudget(
        RetryPolicy(budget_tokens=2, budget_per_second=1, budget_per_success=0.5), clock=lambda: now
    )
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.success()
    assert not budget.take()
    budget.success()
    assert budget.take()
    now = 1.5
    assert [budget.take(), budget.take()] == [True, False]
    now = 100.0
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_backoff_is_uniform_below_a_bound_that_doubles():
    policy = RetryPolicy(initial_backoff_seconds=1, max_backoff_seconds=5)
    for attempt, bound in ((1, 1), (2, 2), (3, 4), (4, 5), (9, 5)):
        waits = [policy.backoff_seconds(attempt) for _ in range(2000)]
        assert min(waits) < 0.05 * bound
        assert 0.95 * bound < max(waits) <= bound


@pytest.mark.parametrize(
    "addresses",
    [
        [],
        "localhost",
        ["127.0.0.1:80", "nowhere"],
        "",
        "dns:///name",
        "localhost:99999",
        "http://localhost:80",
        "dns:a:b:80",
        "ipv4:1.2.3.4:80",
    ],
)
def test_invalid_addresses_are_refused(addresses):
    with pytest.raises(ConfigError, match="addresses: got"):
        AsyncRewardClient(addresses)


async def test_no_time_for_a_call_is_invalid():
    async with AsyncRewardClient("localhost:80") as client:
        with pytest.raises(InvalidInput, match="timeout_seconds"):
            await client.score(ITEM, timeout_seconds=0)


def test_client_of_another_event_loop_says_so():
    async def score(client: AsyncRewardClient | None) -> AsyncRewardClient:
        async with serving(replica) as address:
            client = client or AsyncRewardClient(address)
            await client.score(ITEM)
        return client

    replica = Replica("a")
    client = asyncio.run(score(None))
    with pytest.raises(RuntimeError, match="in another event loop.*create a client in each"):
        asyncio.run(score(client))
    asyncio.run(client.close())


async def test_stream_is_retried_only_before_its_first_message():
    streamer = Streamer()
    add = policy_service_pb2_grpc.add_PolicyServiceServicer_to_server
    async with serving(streamer, add=add) as address, AsyncPolicyClient(address, retry=FAST) as client:
        ids = [piece.token_ids async for _, piece in client.generate_stream([1], SamplingParams())]
        assert ids == [(0,), (1,), (2,)]
        assert streamer.calls == 3
        seen = []
        with pytest.raises(Unavailable, match=r"draining \(UNAVAILABLE after 1 attempt in "):  # noqa: PT012
            async for _, piece in client.generate_stream([1], SamplingParams()):
                seen.append(piece.token_ids)
        assert seen == [(0,)]
        assert streamer.calls == 4


async def test_attempts_and_retries_are_counted_for_metrics():
    registry = CollectorRegistry()
    ClientMetrics(registry)
    labels = {"grpc_type": "unary", "grpc_service": "fairlead.v1.RewardService", "grpc_method": "Score"}

    def counts() -> tuple[float, float, float]:
        return (
            total(registry, "grpc_client_handled_total", **labels, grpc_code="OK"),
            total(registry, "grpc_client_handled_total", **labels, grpc_code="UNAVAILABLE"),
            total(registry, "fairlead_client_retries_total", service="reward", reason="UNAVAILABLE"),
        )

    before = counts()
    async with serving(Replica("a", raising(Unavailable("not now"), times=2))) as address:
        async with AsyncRewardClient(address, retry=FAST) as client:
            assert (await client.score(ITEM)).model_version == "a"
    assert [after - first for after, first in zip(counts(), before, strict=True)] == [1, 2, 2]
    assert total(registry, "fairlead_client_budget_exhausted_total", service="reward") >= 0


async def test_call_without_budget_is_counted():
    registry = CollectorRegistry()
    ClientMetrics(registry)
    policy = RetryPolicy(budget_tokens=0.0, budget_per_second=0.0, initial_backoff_seconds=0.01)
    before = total(registry, "fairlead_client_budget_exhausted_total", service="reward")
    async with serving(Replica("a", raising(Unavailable("not now")))) as address:
        async with AsyncRewardClient(address, retry=policy) as client:
            with pytest.raises(Unavailable):
                await client.score(ITEM)
    assert total(registry, "fairlead_client_budget_exhausted_total", service="reward") == before + 1
