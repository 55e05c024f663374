"""The gRPC server of the model services, in process: health, reflection, metrics, errors, drain, ports."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import CollectorRegistry

from fairlead.config.base import ServerSection
from fairlead.config.infrastructure import ObserveSection
from fairlead.config.serving import ModelServiceSection
from fairlead.errors import (
    ConfigError,
    CorruptData,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    Overloaded,
    StaleWeights,
    Unauthenticated,
    Unavailable,
)
from fairlead.v1 import reward_service_pb2 as pb
from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from services.runtime.process import Stopped
from services.runtime.server import ModelServer

NAME = "fairlead.v1.RewardService"


class Servicer(pb_grpc.RewardServiceServicer):
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.entered = asyncio.Event()
        self.resume = asyncio.Event()
        self.resume.set()

    async def Score(self, request, context):
        self.entered.set()
        await self.resume.wait()
        if self.error is not None:
            raise self.error
        return pb.ScoreResponse(model_version="x")

    async def GetRewardInfo(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "by hand")

    def add_to(self, server):
        pb_grpc.add_RewardServiceServicer_to_server(self, server)


def section(**settings) -> ModelServiceSection:
    return ModelServiceSection(**({"bind": "127.0.0.1:0"} | settings))


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
async def server(registry):
    async with ModelServer("reward", section(), ObserveSection(), registry=registry) as server:
        yield server


@pytest.fixture
async def servicer(server):
    servicer = Servicer()
    await server.start(servicer.add_to, [NAME])
    return servicer


@pytest.fixture
async def channel(server, servicer):
    async with aio.insecure_channel(server.address) as channel:
        yield channel


async def http(server, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{server.metrics_port}{path}", timeout=30
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def status_of(call) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_health_is_serving_only_while_ready(server, channel):
    stub = health_pb2_grpc.HealthStub(channel)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

    async def check(service: str) -> int:
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

    assert [await check(""), await check(NAME)] == [not_serving, not_serving]
    assert await check("liveness") == serving
    assert (await http(server, "/readyz"))[0] == 503
    assert (await http(server, "/healthz"))[0] == 200
    for misspelt in ("/health", "/ready", "/metrics/x"):
        assert (await http(server, misspelt))[0] == 404, misspelt
    server.set_ready(True)
    assert [await check(""), await check(NAME)] == [serving, serving]
    assert (await http(server, "/readyz"))[0] == 200
    server.set_ready(False)
    assert [await check(""), await check("liveness")] == [not_serving, serving]
    error = await status_of(stub.Check(health_pb2.HealthCheckRequest(service="other")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_all_watchers_get_changes_after_one_cancels(server, channel):
    stub = health_pb2_grpc.HealthStub(channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    for watch in watches:
        assert (await watch.read()).status == not_serving
    watches[0].cancel()
    server.set_ready(True)
    for watch in watches[1:]:
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    # A read that starts after the end of the call may miss the last message.
    reads = [asyncio.ensure_future(watch.read()) for watch in watches[1:]]
    server.stop()
    await server.run_until_stopped()
    for watch, response in zip(watches[1:], await asyncio.gather(*reads), strict=True):
        assert response.status == not_serving
        assert await watch.read() == aio.EOF


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_services(channel, version):
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {NAME, "grpc.health.v1.Health"} <= names
    for name in names:
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
    await call.done_writing()
    assert await call.read() == aio.EOF


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (InvalidInput("n", got=0, allowed="1 or more"), "INVALID_ARGUMENT", "n: got 0, allowed: 1 or more"),
        (
            Overloaded("full", retry_after_seconds=1.5),
            "RESOURCE_EXHAUSTED",
            "full; try again in 1.5 s",
        ),
        (Unavailable("loading"), "UNAVAILABLE", "loading"),
        (StaleWeights("has 1-0"), "FAILED_PRECONDITION", "has 1-0"),
        (DeadlineExceeded("late"), "DEADLINE_EXCEEDED", "late"),
        (Unauthenticated("no token"), "UNAUTHENTICATED", "no token"),
    ],
)
async def test_errors_become_statuses(servicer, channel, error, code, details):
    servicer.error = error
    found = await status_of(pb_grpc.RewardServiceStub(channel).Score(pb.ScoreRequest(), timeout=30))
    assert (found.code().name, found.details()) == (code, details)
    pushback = found.trailing_metadata().get("grpc-retry-pushback-ms")
    assert pushback == ("1500" if isinstance(error, Overloaded) else None)


@pytest.mark.parametrize(
    "error", [KeyError("/secret/path"), CorruptData("/secret/path"), InternalError("NaN")]
)
async def test_internal_error_shows_logged_id_and_no_internals(servicer, channel, error, caplog):
    servicer.error = error
    found = await status_of(pb_grpc.RewardServiceStub(channel).Score(pb.ScoreRequest(), timeout=30))
    assert found.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in found.details()
    assert ("NaN" in found.details()) == isinstance(error, InternalError)
    error_id = found.details().rpartition("(")[2].split()[0]
    (record,) = [record for record in caplog.records if error_id in record.getMessage()]
    assert record.exc_info[1] is error


async def test_texts_are_not_logged(servicer, channel, caplog):
    caplog.set_level("DEBUG")
    servicer.error = InvalidInput("items", index=4, got="a person's words", allowed="others")
    request = pb.ScoreRequest(items=[pb.ScoreItem(text=pb.TextPair(prompt="a person's prompt"))])
    await status_of(pb_grpc.RewardServiceStub(channel).Score(request, timeout=30))
    logged = " ".join(
        str(vars(record)) + record.getMessage() for record in caplog.records if "Score" in str(vars(record))
    )
    assert "items[4]" in logged
    assert "person" not in logged


async def test_malformed_message_is_invalid_argument(channel, servicer):
    call = channel.unary_unary(f"/{NAME}/Score")
    found = await status_of(call(b"\xff\xff\xff", timeout=30))
    assert found.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request: got '3 bytes" in found.details()


async def test_explicit_status_is_kept_and_unknown_method_is_unimplemented(channel):
    found = await status_of(
        pb_grpc.RewardServiceStub(channel).GetRewardInfo(pb.GetRewardInfoRequest(), timeout=30)
    )
    assert (found.code(), found.details()) == (grpc.StatusCode.UNIMPLEMENTED, "by hand")
    found = await status_of(channel.unary_unary(f"/{NAME}/Nothing")(b"", timeout=30))
    assert found.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_rpcs_are_counted_by_status(server, servicer, channel, registry):
    stub = pb_grpc.RewardServiceStub(channel)
    for _ in range(3):
        await stub.Score(pb.ScoreRequest(), timeout=30)
    servicer.error = InvalidInput("n", got=0, allowed="1")
    await status_of(stub.Score(pb.ScoreRequest(), timeout=30))
    servicer.error = None
    servicer.resume.clear()
    servicer.entered.clear()
    call = stub.Score(pb.ScoreRequest(), timeout=60)
    await servicer.entered.wait()
    call.cancel()
    labels = {"grpc_type": "unary", "grpc_service": NAME, "grpc_method": "Score"}

    def handled(code: str) -> float | None:
        return registry.get_sample_value("grpc_server_handled_total", labels | {"grpc_code": code})

    async with asyncio.timeout(30):
        while handled("CANCELLED") != 1:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)
    assert (handled("OK"), handled("INVALID_ARGUMENT")) == (3, 1)
    assert registry.get_sample_value("grpc_server_started_total", labels) == 5
    assert registry.get_sample_value("grpc_server_handling_seconds_count", labels) == 5
    assert 'grpc_code="INVALID_ARGUMENT"' in (await http(server, "/metrics"))[1]


async def test_drain_finishes_running_rpcs_and_refuses_new_ones(server, servicer, channel):
    server.set_ready(True)
    servicer.resume.clear()
    stub = pb_grpc.RewardServiceStub(channel)
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    running = [asyncio.ensure_future(_score(stub)) for _ in range(50)]
    await servicer.entered.wait()
    server.stop()
    draining = asyncio.create_task(server.run_until_stopped())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not server.ready
    async with asyncio.timeout(30):
        while server.accepts:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)
    async with aio.insecure_channel(server.address) as late:
        found = await status_of(pb_grpc.RewardServiceStub(late).Score(pb.ScoreRequest(), timeout=30))
        assert (found.code(), found.details()) == (grpc.StatusCode.UNAVAILABLE, "the server is draining")
    assert not draining.done()
    servicer.resume.set()
    assert await asyncio.gather(*running) == ["x"] * 50
    async with asyncio.timeout(30):
        await draining


async def _score(stub) -> str:
    return (await stub.Score(pb.ScoreRequest(), timeout=30)).model_version


async def test_drain_ends_after_drain_seconds(registry):
    servicer = Servicer()
    servicer.resume.clear()
    limits = ServerSection(drain_seconds=0.2)
    async with ModelServer("reward", section(), ObserveSection(), limits=limits, registry=registry) as server:
        await server.start(servicer.add_to, [NAME])
        async with aio.insecure_channel(server.address) as channel:
            call = asyncio.ensure_future(_score(pb_grpc.RewardServiceStub(channel)))
            await servicer.entered.wait()
            server.stop()
            async with asyncio.timeout(30):
                await server.run_until_stopped()
            assert (await status_of(call)).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


async def test_port_in_use_is_reported_before_loading():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError) as refused:
            await ModelServer(
                "reward", section(bind=address), ObserveSection(), registry=CollectorRegistry()
            ).__aenter__()
    assert str(refused.value) == (
        f"reward.bind: got '{address} (Address already in use)', allowed: "
        "host:port that is free on this machine"
    )


async def test_two_servers_cannot_share_a_port(server, servicer, registry):
    other = ModelServer(
        "reward", section(bind=server.address), ObserveSection(metrics_port=-1), registry=CollectorRegistry()
    )
    with pytest.raises(ConfigError, match="free on this machine"):
        await other.start(Servicer().add_to, [NAME])


@pytest.mark.parametrize("bind", ["dns:///policy:50051", "localhost", ":50051", "nowhere.invalid:1"])
async def test_invalid_bind_address_is_refused(bind):
    with pytest.raises(ConfigError, match=r"reward\.bind: got"):
        await ModelServer(
            "reward", section(bind=bind), ObserveSection(), registry=CollectorRegistry()
        ).__aenter__()


async def test_stop_does_not_wait_for_model_loading(server):
    release = threading.Event()
    loading = asyncio.create_task(server.load(release.wait))
    server.stop()
    with pytest.raises(Stopped):
        async with asyncio.timeout(30):
            await loading
    release.set()


async def test_load_returns_results_and_raises_errors(server):
    assert await server.load(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await server.load(lambda: 1 // 0)


async def test_bytes_of_requests_in_flight_are_limited(registry):
    limits = ServerSection(max_in_flight_bytes=50_000)
    async with ModelServer("reward", section(), ObserveSection(), limits=limits, registry=registry) as server:
        servicer = Servicer()
        servicer.resume.clear()
        await server.start(servicer.add_to, [NAME])
        large = pb.ScoreRequest(request_id="x" * 30_000)
        async with aio.insecure_channel(server.address) as channel:
            stub = pb_grpc.RewardServiceStub(channel)
            first = stub.Score(large, timeout=20)
            await servicer.entered.wait()
            error = await status_of(stub.Score(large, timeout=20))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "more than 50000 bytes" in error.details()
            assert int(error.trailing_metadata().get("grpc-retry-pushback-ms")) == 500
            small = stub.Score(pb.ScoreRequest(request_id="x" * 1_000), timeout=20)
            servicer.resume.set()
            await asyncio.gather(first, small)
            # A single request above the limit is accepted when no other is in flight.
            await stub.Score(pb.ScoreRequest(request_id="x" * 90_000), timeout=20)
