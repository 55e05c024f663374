"""Bulk scoring over a stream: scores, errors of single requests, limits, waiting and broken streams."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc import aio
from prometheus_client import CollectorRegistry

from fairlead import RewardClient
from fairlead.clients import AsyncRewardClient
from fairlead.config.infrastructure import ObserveSection
from fairlead.config.serving import RewardSection
from fairlead.errors import InvalidInput, Overloaded, RemoteInvalidInput
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import Scores, TokenPair
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from services.reward.servicer import SERVICE_NAME, RewardServicer
from services.runtime.server import ModelServer
from services.runtime.streams import Bounds, process_bounded
from tests.tiny import tiny_reward_model
from tests.unit.fairlead.rpc.rpc_world import FAST, serving
from tests.unit.services.reward.reward_world import Threaded, World, reward_service
from tests.waiting import until


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_reward_model(tmp_path_factory.mktemp("reward"))


def pairs(count: int, *, longest: int = 40) -> list[TokenPair]:
    return [TokenPair((5,) * (1 + n % longest), (6 + n % 40, 7)) for n in range(count)]


def request(sequence: int, *, items: int = 1) -> pb.ScoreStreamRequest:
    tokens = pb.TokenPair(prompt_token_ids=[5, 6], response_token_ids=[7 + sequence % 40])
    item = pb.ScoreItem(tokens=tokens)
    return pb.ScoreStreamRequest(sequence=sequence, request=pb.ScoreRequest(items=[item] * items))


async def test_stream_returns_the_scores_of_single_calls(model):
    items = pairs(60)
    async with reward_service(model) as world, AsyncRewardClient(world.address) as client:
        expected = await client.score(items)
        found = {n: outcome async for n, outcome in client.score_stream([item] for item in items)}
        assert sorted(found) == list(range(60))
        for n, score in enumerate(expected.scores):
            assert found[n].scores[0] == pytest.approx(score, abs=1e-5)
            assert found[n].model_version == world.version
        assert world.count("grpc_server_msg_received_total", "ScoreStream") == 60
        assert world.count("grpc_server_msg_sent_total", "ScoreStream") == 60
        assert world.count("grpc_server_handled_total", "ScoreStream", grpc_code="OK") == 1


async def test_invalid_request_gets_an_error_and_the_stream_continues(model):
    good = [TokenPair((5,), (6,))]
    requests = [good, [TokenPair((5,), (99,))], [TokenPair((5,), (2**40,))], [], [("a", "b")], good]
    async with reward_service(model) as world, AsyncRewardClient(world.address) as client:
        found = {n: outcome async for n, outcome in client.score_stream(requests)}
    assert [type(found[n]) for n in range(6)] == [
        Scores,
        RemoteInvalidInput,
        InvalidInput,
        RemoteInvalidInput,
        Scores,
        Scores,
    ]
    assert "items.tokens.response_token_ids[0]: got '99 at position 0'" in str(found[1])
    assert found[0].scores == pytest.approx(found[5].scores)


class Scripted:
    """Scores without a model: returns a large response, or raises an error."""

    info = None

    def __init__(self, *, error: Exception | None = None) -> None:
        self.error = error

    async def score(self, items, call):
        if self.error is not None:
            raise self.error
        return Scores((0.5,) * 50_000, "scripted", (1,) * 50_000)


@asynccontextmanager
async def scripted(scoring, bounds):
    registry = CollectorRegistry()
    section = RewardSection(bind="127.0.0.1:0")
    async with ModelServer("reward", section, ObserveSection(), registry=registry) as server:
        servicer = RewardServicer(scoring, bounds, max_items=section.batching.max_items)
        address = await server.start(servicer.add_to, [SERVICE_NAME])
        server.set_ready(True)
        async with aio.insecure_channel(address) as channel:
            world = World(address, server, scoring, registry)
            yield world, pb_grpc.RewardServiceStub(channel)


async def test_server_stops_reading_from_a_client_that_reads_no_responses():
    """With 250 kB a response, a few fill every window of gRPC; the server processes no more than its
    limit.
    """
    async with scripted(Scripted(), Bounds(4, 1 << 20)) as (world, stub):
        call = stub.ScoreStream(timeout=60)

        async def send() -> None:
            for number in range(300):
                await call.write(request(number))
            await call.done_writing()

        sender = asyncio.create_task(send())

        def counts() -> list[float]:
            names = ("received", "sent")
            return [world.count(f"grpc_server_msg_{name}_total", "ScoreStream") for name in names]

        await until(lambda: counts()[0] > 4)
        before = None
        while before != (before := counts()):  # noqa: ASYNC110 - no event reports that nothing happens
            await asyncio.sleep(0.2)
        received, sent = before
        assert received < 150
        assert received - sent <= 5
        answers = [answer.sequence async for answer in call]
        await sender
        assert sorted(answers) == list(range(300))


async def test_overloaded_response_has_its_retry_delay():
    full = Scripted(error=Overloaded("full", retry_after_seconds=7.5))
    async with scripted(full, Bounds(4, 1 << 20)) as (_, stub):
        call = stub.ScoreStream(timeout=20)
        await call.write(request(3))
        await call.done_writing()
        (answer,) = [answer async for answer in call]
    assert answer.sequence == 3
    assert answer.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert answer.error.retry_after_seconds == 7.5


async def test_internal_error_hides_its_message_and_the_stream_continues(caplog):
    scoring = Scripted(error=KeyError("secret"))
    async with scripted(scoring, Bounds(4, 1 << 20)) as (_, stub):
        call = stub.ScoreStream(timeout=20)
        await call.write(request(1))
        first = await call.read()
        scoring.error = None
        await call.write(request(2))
        assert (await call.read()).response.model_version == "scripted"
        await call.done_writing()
    assert first.error.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in first.error.message
    assert first.error.message.split("(")[1][:12] in caplog.text


async def test_work_in_progress_is_limited_and_optionally_in_order():
    working, most = 0, 0

    async def requests():
        for number in range(60):
            yield number

    async def answer(number: int) -> int:
        nonlocal working, most
        working += 1
        most = max(most, working)
        await asyncio.sleep(0.001 * (number % 7))
        working -= 1
        return number

    for bounds, in_order, allowed in (
        (Bounds(5, 10**9), False, 5),
        (Bounds(100, 30), True, 3),
        (Bounds(100, 5), True, 1),
    ):
        most = 0
        found = [
            n
            async for n in process_bounded(
                requests(), answer, size=lambda _: 10, bounds=bounds, in_order=in_order
            )
        ]
        assert sorted(found) == list(range(60))
        assert not in_order or found == list(range(60))
        assert most == allowed


async def test_stream_waits_while_the_server_is_full(model):
    queue = {"max_batch_tokens": 64, "max_queue_tokens": 128}
    items = [TokenPair(tuple([5] * 50), (6 + n,)) for n in range(40)]
    async with reward_service(model, batching=queue) as world, AsyncRewardClient(world.address) as client:
        async with AsyncRewardClient(world.address, retry=RetryPolicy(max_attempts=1)) as single:
            calls = (single.score([item]) for item in items * 5)
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(result, Overloaded) for result in results)
        found = {n: outcome async for n, outcome in client.score_stream([item] for item in items)}
        assert all(isinstance(outcome, Scores) for outcome in found.values())
        assert len(found) == 40
        assert world.queue_tokens == 0


async def test_client_of_a_draining_server_continues_on_another(model):
    items = pairs(400)

    async def feed():
        for n, item in enumerate(items):
            if n == 200:
                await until(lambda: drained)
            yield [item]

    drained = False
    async with (
        reward_service(model) as first,
        reward_service(model) as second,
        AsyncRewardClient([first.address, second.address], retry=FAST) as client,
    ):
        worlds = {first.address: first, second.address: second}
        found = {}
        async for n, outcome in client.score_stream(feed(), max_in_flight=50):
            found[n] = outcome
            if n >= 150 and not drained:
                drained = True
                used = max(
                    worlds.values(), key=lambda w: w.count("grpc_server_msg_received_total", "ScoreStream")
                )
                drain = asyncio.create_task(used.server.drain())
        await drain
        assert sorted(found) == list(range(400))
        assert all(isinstance(outcome, Scores) for outcome in found.values())
        assert used.count("grpc_server_handled_total", "ScoreStream", grpc_code="UNAVAILABLE") == 1
        read = used.count("grpc_server_msg_received_total", "ScoreStream")
        assert read == used.count("grpc_server_msg_sent_total", "ScoreStream")


async def test_error_of_the_callers_iterator_is_raised_after_earlier_outcomes(model):
    def feed():
        yield [TokenPair((5,), (6,))]
        yield [TokenPair((5,), (7,))]
        raise KeyError("mine")

    async with reward_service(model) as world, AsyncRewardClient(world.address) as client:
        found = []

        async def take() -> None:
            async for n, _ in client.score_stream(feed()):
                found.append(n)

        with pytest.raises(KeyError, match="mine"):
            await take()
        assert sorted(found) == [0, 1]


async def test_inputs_are_read_no_faster_than_outcomes_are_consumed(model):
    read = 0

    def feed():
        nonlocal read
        for item in pairs(150):
            read += 1
            yield [item]

    async with reward_service(model) as world, AsyncRewardClient(world.address) as client:
        taken = 0
        async for _ in client.score_stream(feed(), max_in_flight=8):
            taken += 1
            assert read <= taken + 8
        assert taken == 150


async def test_invalid_bytes_end_the_stream_with_invalid_argument(model):
    async with reward_service(model) as world, aio.insecure_channel(world.address) as channel:
        call = channel.stream_stream("/fairlead.v1.RewardService/ScoreStream")(timeout=20)
        await call.write(request(1).SerializeToString())
        await call.write(b"\xff\xff\xff")
        answers = []

        async def take() -> None:
            async for answer in call:
                answers.append(pb.ScoreStreamResponse.FromString(answer))

        with pytest.raises(aio.AioRpcError) as error:
            await take()
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [answer.sequence for answer in answers] == [1]


async def test_requests_of_a_cancelled_stream_are_cancelled(model):
    async with reward_service(model) as world, AsyncRewardClient(world.address) as client:
        async for _ in client.score_stream(([item] for item in pairs(5_000)), max_in_flight=200):
            break
        await until(
            lambda: world.count("grpc_server_handled_total", "ScoreStream", grpc_code="CANCELLED") == 1
        )
        await until(lambda: world.queue_tokens == 0)
        assert world.count("grpc_server_msg_received_total", "ScoreStream") < 1_000


class Breaking(pb_grpc.RewardServiceServicer):
    """Returns the number of each request as its score; breaks the stream after every third response."""

    def __init__(self) -> None:
        self.streams = 0

    async def ScoreStream(self, request_iterator, context):
        self.streams += 1
        count = 0
        async for asked in request_iterator:
            response = pb.ScoreResponse(scores=[float(asked.sequence)], model_version="x")
            yield pb.ScoreStreamResponse(sequence=asked.sequence, response=response)
            count += 1
            if count == 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


async def test_broken_stream_is_opened_again_while_it_makes_progress():
    servicer = Breaking()
    async with serving(servicer) as address, AsyncRewardClient(address, retry=FAST) as client:
        found = [outcome async for outcome in client.score_stream([item] for item in pairs(30))]
        assert sorted((n, outcome.scores[0]) for n, outcome in found) == [(n, float(n)) for n in range(30)]
        assert servicer.streams >= 10


def test_blocking_client_streams_too(model):
    with Threaded() as threaded, RewardClient(threaded.serve(reward_service(model)).address) as client:
        found = dict(client.score_stream([item] for item in pairs(20)))
        assert sorted(found) == list(range(20))
