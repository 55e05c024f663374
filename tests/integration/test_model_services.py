"""The reward and reference services as processes: results, drain under load, exit codes."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import grpc
import pytest
from grpc import aio

from fairlead import ReferenceClient, RewardClient, TextPair, TokenPair
from fairlead.clients import AsyncReferenceClient, AsyncRewardClient
from fairlead.errors import InvalidInput
from fairlead.v1 import (
    reference_service_pb2,
    reference_service_pb2_grpc,
    reward_service_pb2,
    reward_service_pb2_grpc,
)
from tests.service_process import Process, SharedServices
from tests.waiting import until

PAIR = TokenPair(tuple(range(4, 44)), tuple(range(10, 50)))


@pytest.fixture
def models(shared: SharedServices) -> dict[str, Path]:
    return shared.models


@pytest.fixture
def running(shared: SharedServices) -> dict[str, Process]:
    """Return one reward and one reference service for all tests."""
    return shared.ready("reward", "reference")


class RawLoad:
    """Calls one replica in a loop through a stub without retries, until it is refused."""

    def __init__(self, name: str, address: str) -> None:
        self.results: list[tuple[float, grpc.StatusCode]] = []
        self.name = name
        self.address = address

    async def run(self) -> None:
        async with aio.insecure_channel(self.address, options=[("grpc.enable_retries", 0)]) as channel:
            if self.name == "reward":
                call = reward_service_pb2_grpc.RewardServiceStub(channel).Score
                pair = reward_service_pb2.TokenPair(
                    prompt_token_ids=PAIR.prompt_token_ids, response_token_ids=PAIR.response_token_ids
                )
                request = reward_service_pb2.ScoreRequest(
                    items=[reward_service_pb2.ScoreItem(tokens=pair)] * 8
                )
            else:
                call = reference_service_pb2_grpc.ReferenceServiceStub(channel).LogProbs
                sequence = reference_service_pb2.LogProbsSequence(
                    prompt_token_ids=PAIR.prompt_token_ids, response_token_ids=PAIR.response_token_ids
                )
                request = reference_service_pb2.LogProbsRequest(sequences=[sequence] * 8, temperature=1.0)
            await asyncio.gather(*(self._loop(call, request) for _ in range(16)))

    async def _loop(self, call, request) -> None:
        while True:
            sent = time.monotonic()
            try:
                await call(request, timeout=60)
            except aio.AioRpcError as error:
                self.results.append((sent, error.code()))
                return
            self.results.append((sent, grpc.StatusCode.OK))


async def balanced_load(name: str, addresses: list[str], stop: asyncio.Event) -> int:
    """Call all replicas through our client until `stop` is set; any error fails the test."""
    answered = 0

    async def loop(call) -> None:
        nonlocal answered
        while not stop.is_set():
            await call()
            answered += 1

    if name == "reward":
        async with AsyncRewardClient(addresses) as client:
            await asyncio.gather(*(loop(lambda: client.score([PAIR] * 4)) for _ in range(8)))
    else:
        async with AsyncReferenceClient(addresses) as client:
            await asyncio.gather(
                *(loop(lambda: client.logprobs([PAIR] * 4, temperature=0.7)) for _ in range(8))
            )
    return answered


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward", "reference"])
async def test_sigterm_under_load_fails_no_accepted_rpc(name, models, running, start):
    settings = {"reward": {"reward.calibration_temperature": 2.0}}
    stopped, stays = start(name, models[name], **settings.get(name, {})), running[name]
    await asyncio.to_thread(stopped.wait_for, "/readyz")
    raw = RawLoad(name, stopped.address)
    stop = asyncio.Event()
    bare = asyncio.create_task(raw.run())
    balanced = asyncio.create_task(balanced_load(name, [stopped.address, stays.address], stop))
    await until(lambda: len(raw.results) > 100, seconds=30)
    terminated = time.monotonic()
    stopped.popen.send_signal(signal.SIGTERM)
    await until(lambda: stopped.popen.poll() is not None, seconds=30)
    assert stopped.popen.returncode == 0, stopped.log.read_text()
    await asyncio.wait_for(bare, 60)
    stop.set()
    assert await asyncio.wait_for(balanced, 60) > 50
    assert {code for _, code in raw.results} == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    early = [code for sent, code in raw.results if sent < terminated]
    assert set(early) == {grpc.StatusCode.OK}, "every call accepted before the signal was answered"
    assert stays.get("/readyz")[0] == 200


def test_reward_scores_text_and_tokens_alike_and_exports_metrics(running):
    process = running["reward"]
    with RewardClient(process.address) as client:
        info = client.info()
        scores = client.score([("w1 w2", "w3"), TextPair("w1", "w9 w9"), TokenPair((1, 5, 6), (7, 2))])
        assert scores.model_version == info.model_version
        assert scores.num_tokens == (5, 5, 5)
        assert scores.scores[0] == pytest.approx(scores.scores[2], abs=1e-6)
        assert scores.scores[0] != pytest.approx(scores.scores[1], abs=1e-3)
        with pytest.raises(
            InvalidInput, match=r"items.tokens.response_token_ids\[1\]: got '60 at position 0'"
        ):
            client.score([("w1", "w2"), TokenPair((1,), (60,))])
        with pytest.raises(InvalidInput, match="items.text.prompt.*got '5000000 bytes'"):
            client.score([("x" * 5_000_000, "w1")])
    page = process.get("/metrics")[1]
    labels = '{grpc_code="OK",grpc_method="Score",grpc_service="fairlead.v1.RewardService",grpc_type="unary"}'
    for line in (
        f"grpc_server_handled_total{labels}",
        "grpc_server_handling_seconds_count",
        'fairlead_batcher_sequences_total{result="scored"}',
        "fairlead_batcher_queue_tokens 0.0",
        "fairlead_batcher_wait_seconds_count",
        "fairlead_batcher_batch_fill_ratio_count",
        "fairlead_batcher_batch_tokens_sum",
    ):
        assert line in page


def test_reference_logprobs_do_not_depend_on_the_batch(running):
    with ReferenceClient([running["reference"].address]) as client:
        assert client.info().model.vocabulary_size == 60
        single = client.logprobs([PAIR], temperature=0.7)
        together = client.logprobs([TokenPair((1,), (2, 3)), PAIR], temperature=0.7)
        assert together[1] == pytest.approx(single[0], abs=1e-5)
        assert [len(row) for row in together] == [2, 40]
        with pytest.raises(InvalidInput, match="temperature: got nan"):
            client.logprobs([PAIR], temperature=float("nan"))


@pytest.mark.parametrize(
    # A model is loaded after the imports of torch; the policy service ends the same way.
    "loads",
    [False, pytest.param(True, marks=pytest.mark.slow)],
)
def test_permanent_errors_exit_with_2_and_one_line(models, start, loads):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = {
            f"reward.bind: got '{address} (Address already in use)'": start(
                "reward", models["reward"], **{"reward.bind": address}
            ),
            "did you mean `reward.max_text_bytes`?": start(
                "reward", models["reward"], **{"reward.max_text_byte": 3}
            ),
        }
        if loads:
            ended["without a reward head"] = start("reward", models["reference"])
        for message, process in ended.items():
            assert process.popen.wait(60) == 2, process.log.read_text()
            lines = process.log.read_text().splitlines()
            assert message in lines[-1]
            assert "Traceback" not in process.log.read_text()


@pytest.mark.slow  # the policy service ends the same way
def test_sigterm_while_loading_exits_with_0(models, start):
    process = start("reward", models["reward"])
    process.wait_for("/healthz")
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(10) == 0, process.log.read_text()
