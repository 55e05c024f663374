"""The exports of the package, and the blocking clients."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import grpc
import pytest

import fairlead
from fairlead.errors import DeadlineExceeded, Unavailable
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import SamplingParams
from fairlead.v1 import policy_service_pb2_grpc
from tests.unit.fairlead.rpc.rpc_world import FAST, Replica, Streamer, dead_address, serving


def test_every_export_exists_and_a_misspelt_one_raises():
    for name in fairlead.__all__:
        assert getattr(fairlead, name).__name__ == name
    assert set(fairlead.__all__) <= set(dir(fairlead))
    with pytest.raises(AttributeError, match="has no attribute 'RewardClien'"):
        fairlead.RewardClien  # noqa: B018


def test_package_does_not_import_torch():
    code = (
        "import sys, fairlead; assert 'grpc' not in sys.modules; "
        "from fairlead import RewardClient, PolicyClient, ReferenceClient, AsyncRewardClient; "
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Served:
    """Servers in the event loop of another thread, as if in another process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.blocked = threading.Event()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._contexts = []

    def __call__(self, servicer, **options) -> str:
        context = serving(servicer, **options)
        self._contexts.append(context)
        return asyncio.run_coroutine_threadsafe(context.__aenter__(), self.loop).result(10)

    def close(self) -> None:
        self.blocked.set()
        for context in self._contexts:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def served():
    served = Served()
    try:
        yield served
    finally:
        served.close()


def test_blocking_client_returns_results_and_closes(served):
    address = served(Replica("here"))
    with fairlead.RewardClient(address) as client:
        assert client.score([("a", "b")]).model_version == "here"
        assert client.info().model_version == "here"
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.score([("a", "b")])


def test_clients_share_a_thread_and_close_independently(served):
    address = served(Replica("here"))
    with fairlead.RewardClient(address) as first:
        first.info()
        threads = threading.active_count()
        with fairlead.RewardClient(address) as second:
            second.info()
            assert threading.active_count() == threads
        assert first.info().model_version == "here"
    with fairlead.RewardClient(address) as third:
        assert third.info().model_version == "here"


def test_client_that_is_not_closed_ends_with_its_last_reference(served):
    client = fairlead.RewardClient(served(Replica("here")))
    client.info()
    (channel,) = (replica.channel for replica in client._client._replicas._replicas)
    assert channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    del client
    deadline = time.monotonic() + 30
    while channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_program_that_closes_no_client_ends_without_output(served):
    code = (
        "import sys; from fairlead import RewardClient; "
        "clients = [RewardClient(sys.argv[1]) for _ in range(3)]; "
        "print(*(client.info().model_version for client in clients))"
    )
    command = [sys.executable, "-c", code, served(Replica("here"))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here here here\n", "")


async def test_blocking_client_works_inside_a_running_loop(served):
    """As in a notebook: the call blocks, without `loop is already running`."""
    address = served(Replica("here"))
    with fairlead.RewardClient([address]) as client:
        assert client.score([("a", "b")]).scores == (1.0,)


def test_many_threads_share_a_client(served):
    replica = Replica("here")
    with fairlead.RewardClient(served(replica)) as client:
        threads = [threading.Thread(target=client.score, args=([("a", "b")],)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert replica.calls == 20


def test_request_past_its_deadline_is_not_started(served):
    """The server is too busy to read the request before its deadline."""
    replica = Replica("busy")
    with fairlead.RewardClient(served(replica)) as client:
        client.score([("a", "b")])
        served.loop.call_soon_threadsafe(served.blocked.wait, 10)
        with pytest.raises(DeadlineExceeded):
            client.score([("a", "b")], timeout_seconds=0.2)
        served.blocked.set()
        client.score([("a", "b")])
    assert replica.calls == 2


def test_errors_and_deadlines_reach_the_caller(served):
    async def hang(call: int) -> None:
        await asyncio.sleep(3600)

    with fairlead.RewardClient(served(Replica("slow", hang))) as client, pytest.raises(DeadlineExceeded):
        client.score([("a", "b")], timeout_seconds=0.2)
    with fairlead.ReferenceClient(dead_address(), retry=FAST) as reference, pytest.raises(Unavailable):
        reference.info()


def test_stream_can_be_closed_early(served):
    add = policy_service_pb2_grpc.add_PolicyServiceServicer_to_server
    with fairlead.PolicyClient(
        served(Streamer(), add=add), retry=RetryPolicy(initial_backoff_seconds=0.01)
    ) as client:
        pieces = list(client.generate_stream([1, 2], SamplingParams()))
        assert [(index, piece.token_ids) for index, piece in pieces] == [(0, (0,)), (0, (1,)), (0, (2,))]
        with pytest.raises(Unavailable):
            list(client.generate_stream("text", SamplingParams()))
        stream = client.generate_stream([1], SamplingParams())
        assert next(stream)[1].token_ids == (0,)
        stream.close()
