"""Arbitrary bytes over the wire: no crash, no INTERNAL, complete responses, and no growing memory."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field

import grpc
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from tritonclient.grpc import service_pb2 as pb

from fairlead import RewardClient, TokenPair
from fairlead.v1 import reward_service_pb2
from tests import fuzz_requests as fuzz
from tests.service_process import Starter
from tests.tiny import tiny_reward_model
from tests.unit.services.reward.reward_world import Threaded, reward_service

ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # a `timeout` of a microsecond
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
}
SETTINGS = {"batching": {"max_items": 8, "max_queue_tokens": 4_096}, "max_text_bytes": 2_000}
STREAMS = (fuzz.SCORE_STREAM, fuzz.INFER_STREAM)


@dataclass
class Target:
    """A service, and the statuses it returned."""

    address: str
    channel: grpc.Channel
    seen: Counter = field(default_factory=Counter)

    def call(self, method: str, body: bytes) -> None:
        """Send one request; a response must match it, and an error must be a caller's mistake."""
        try:
            if method in STREAMS:
                (answer,) = self.channel.stream_stream(method)(iter([body]), timeout=20)
            else:
                answer = self.channel.unary_unary(method)(body, timeout=20)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            assert code in ALLOWED, (method, body, code, details)
            assert details, (method, body, code)
        else:
            code = self._check(method, body, answer)
        self.seen[method, code] += 1

    def _check(self, method: str, body: bytes, answer: bytes) -> grpc.StatusCode:
        if method == fuzz.SCORE_STREAM:
            response = reward_service_pb2.ScoreStreamResponse.FromString(answer)
            if response.HasField("error"):
                (code,) = [code for code in grpc.StatusCode if code.value[0] == response.error.code]
                assert code in ALLOWED, (method, body, response)
                return code
            sent = reward_service_pb2.ScoreStreamRequest.FromString(body).request
            assert len(response.response.scores) == len(sent.items)
        elif method == fuzz.SCORE:
            sent = reward_service_pb2.ScoreRequest.FromString(body)
            scores = reward_service_pb2.ScoreResponse.FromString(answer).scores
            assert len(scores) == len(sent.items)
            assert np.isfinite(scores).all()
        elif method in (fuzz.INFER, fuzz.INFER_STREAM):
            response = pb.ModelInferResponse.FromString(answer) if method == fuzz.INFER else None
            if response is None:
                streamed = pb.ModelStreamInferResponse.FromString(answer)
                if streamed.error_message:
                    assert "internal error" not in streamed.error_message, (method, body, streamed)
                    return grpc.StatusCode.INVALID_ARGUMENT
                response = streamed.infer_response
            rows = pb.ModelInferRequest.FromString(body).inputs[0].shape[0]
            assert list(response.outputs[0].shape) == [rows, 1]
            raw = response.raw_output_contents
            values = np.frombuffer(raw[0], dtype="<f4") if raw else response.outputs[0].contents.fp32_contents
            assert len(values) == rows
            assert np.isfinite(values).all()
        return grpc.StatusCode.OK


def fuzzed(target: Target, count: int, *, derandomize: bool) -> None:
    """Send `count` requests, with the same valid request before and after them."""
    pair = TokenPair((5, 6), (7, 8))
    with RewardClient(target.address) as client:
        before = client.score([pair])

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=derandomize,
            suppress_health_check=list(HealthCheck),
        )
        @given(fuzz.calls)
        def send(call: tuple[str, bytes]) -> None:
            target.call(*call)

        send()
        after = client.score([pair])
    assert after.scores == pytest.approx(before.scores, abs=1e-6)
    assert target.seen.total() >= count


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_reward_model(tmp_path_factory.mktemp("reward"))


def test_fuzzed_requests_get_valid_replies(model, caplog):
    with Threaded() as threaded:
        world = threaded.serve(reward_service(model, **SETTINGS))
        with grpc.insecure_channel(world.address) as channel:
            target = Target(world.address, channel)
            fuzzed(target, 300, derandomize=True)
    assert "internal error" not in caplog.text
    # The fuzz is only useful if some requests succeed and some are refused.
    for method in (fuzz.SCORE, fuzz.INFER):
        codes = {code for (name, code) in target.seen if name == method}
        assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= codes


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_36000_fuzzed_requests_do_not_grow_memory(model, tmp_path):
    starter = Starter(tmp_path)
    flags = {
        "reward.batching.max_items": 8,
        "reward.batching.max_queue_tokens": 4_096,
        "reward.max_text_bytes": 2_000,
    }
    try:
        process = starter("reward", model, **flags)
        process.wait_for("/readyz")
        memory = []
        with grpc.insecure_channel(process.address) as channel:
            target = Target(process.address, channel)
            for _ in range(36):
                fuzzed(target, 1_000, derandomize=False)
                memory.append(psutil.Process(process.popen.pid).memory_info().rss / 2**20)
        # Buffers and pools fill up during the first 20,000 requests; after that nothing grows.
        slope = float(np.polyfit(range(16), memory[20:], 1)[0])
        codes = Counter()
        for (_, code), count in target.seen.items():
            codes[code.name] += count
        sys.stdout.write(
            f"\n{dict(codes)}; MiB after each thousand {[round(m, 1) for m in memory]}, slope {slope:.3f}\n"
        )
        assert slope < 0.1
        assert process.popen.poll() is None
        assert "internal error" not in process.log.read_text()
        assert process.stop() == 0
    finally:
        starter.stop()
