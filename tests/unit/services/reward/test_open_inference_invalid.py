"""Invalid gRPC requests of the Open Inference Protocol are refused as mistakes of the caller."""

from __future__ import annotations

import logging
import re

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from fairlead.config.infrastructure import ObserveSection
from fairlead.log import HumanFormatter, JsonFormatter
from fairlead.v1 import (
    reward_admin_service_pb2,
    reward_admin_service_pb2_grpc,
    reward_service_pb2,
    reward_service_pb2_grpc,
)
from tests.tiny import tiny_reward_model
from tests.unit.services.open_inference.grpc_requests import W1, integers, request
from tests.unit.services.reward.reward_world import Threaded, reward_service

IDS, TWO = integers(5, 6), integers(2)
PAIR = (("tokens", "INT64", [1, 2]), ("sequence_lengths", "INT64", [1, 1]))


INVALID = {
    "no inputs": (request(), "inputs: got 'none'"),
    "unknown": (
        request(("texts", "BYTES", [1, 1]), raw=[W1]),
        r"inputs\[0\]: got 'texts', allowed: `sentences`, or",
    ),
    "twice": (
        request(*[("sentences", "BYTES", [1, 1])] * 2, raw=[W1, W1]),
        r"inputs\[1\]: got '`sentences` twice'",
    ),
    "all": (
        request(("sentences", "BYTES", [1, 1]), *PAIR, raw=[W1, IDS, TWO]),
        "inputs: got 'sentences, seq",
    ),
    "no lengths": (request(PAIR[0], raw=[IDS]), "inputs: got 'tokens', allowed: `sentences`, or"),
    "wrong type": (
        request(("sentences", "INT64", [1, 1]), raw=[W1]),
        "inputs.sentences.datatype: got 'INT64', al",
    ),
    "not an integer type": (
        request(("tokens", "FP32", [1, 2]), PAIR[1], raw=[IDS, TWO]),
        "inputs.tokens.datatype: got 'FP32', allowed: INT64, or another integer type",
    ),
    "bytes of another integer type": (
        request(("tokens", "INT32", [1, 2]), PAIR[1], raw=[IDS, TWO]),
        "inputs.tokens: got '16 bytes', allowed: 8, to match the shape",
    ),
    "value beyond its type": (
        request(
            ("tokens", "INT8", [1, 2], {"int_contents": [5, 300]}),
            ("sequence_lengths", "INT64", [1, 1], {"int64_contents": [2]}),
        ),
        r"inputs.tokens\[1\]: got 300, allowed: from -128 to 127",
    ),
    "three dimensions": (
        request(("sentences", "BYTES", [1, 1, 1]), raw=[W1]),
        r"inputs.sentences.shape: got \[1, 1, 1\], allowed: \[B, 1\]",
    ),
    "tokens without S": (
        request(("tokens", "INT64", [2]), PAIR[1], raw=[IDS, TWO]),
        r"inputs.tokens.shape: got \[2\], allowed: \[B, S\]",
    ),
    "negative": (
        request(("sentences", "BYTES", [-1, 1]), raw=[W1]),
        r"inputs.sentences.shape: got \[-1, 1\]",
    ),
    "two negatives": (
        request(("tokens", "INT64", [-1, -2]), PAIR[1], raw=[IDS, TWO]),
        r"inputs.tokens.shape: got \[-1, -2\]",
    ),
    "nothing": (request(("sentences", "BYTES", [0, 1]), raw=[b""]), r"inputs.sentences.shape: got \[0, 1\]"),
    "wide": (request(("sentences", "BYTES", [1, 2]), raw=[W1 * 2]), r"inputs.sentences.shape: got \[1, 2\]"),
    "2^31 texts": (
        request(("sentences", "BYTES", [2**31, 1]), raw=[W1]),
        "inputs.sentences: got '2147483648 rows', allowed: at most 64",
    ),
    "2^62 ids": (
        request(("tokens", "INT64", [2, 2**61]), ("sequence_lengths", "INT64", [2, 1]), raw=[IDS, TWO * 2]),
        "inputs.tokens: got '16 bytes', allowed: 36893488147419103232, to match the shape",
    ),
    "too many": (
        request(("sentences", "BYTES", [65, 1]), raw=[W1 * 65]),
        "got '65 rows', allowed: at most 64",
    ),
    "fewer": (
        request(("sentences", "BYTES", [2, 1]), raw=[W1]),
        "got '1 elements', allowed: 2, to match the shape",
    ),
    "more": (request(("sentences", "BYTES", [1, 1]), raw=[W1 + b"x"]), "1 bytes after the last element"),
    "length lies": (
        request(("sentences", "BYTES", [1, 1]), raw=[b"\xff\xff\xff\xffw1"]),
        r"inputs.sentences\[0\]: got 'a length of 4294967295 bytes, but 2 bytes follow'",
    ),
    "no UTF-8": (
        request(("sentences", "BYTES", [2, 1]), raw=[W1 + b"\x02\0\0\0w\xff"]),
        r"inputs.sentences\[1\]: got 'invalid UTF-8 byte at position 1', allowed: UTF-8",
    ),
    "too long a text": (
        request(("sentences", "BYTES", [1, 1], {"bytes_contents": [b"x" * 1001]})),
        r"inputs.sentences\[0\]: got '1001 bytes', allowed: at most 1000",
    ),
    "too many tokens": (
        request(("sentences", "BYTES", [1, 1], {"bytes_contents": [b"w1 " * 127]})),
        r"inputs.sentences\[0\]: got '129 tokens', allowed: at most 128",
    ),
    "raw for one of two": (request(*PAIR, raw=[IDS]), "raw_input_contents: got '1 for 2 inputs'"),
    "raw and typed": (
        request(("sentences", "BYTES", [1, 1], {"bytes_contents": [b"w1"]}), raw=[W1]),
        "inputs.sentences: got 'contents and raw_input_contents'",
    ),
    "neither": (request(("sentences", "BYTES", [1, 1])), "inputs.sentences: got 'no contents'"),
    "other contents": (
        request(("sentences", "BYTES", [1, 1], {"int64_contents": [1]})),
        "inputs.sentences: got 'int64_contents', allowed: raw_input_contents or bytes_contents",
    ),
    "two contents": (
        request(("sentences", "BYTES", [1, 1], {"int64_contents": [1], "bytes_contents": [b"w1"]})),
        "inputs.sentences: got 'int64_contents, bytes_contents'",
    ),
    "too few typed": (
        request(
            ("tokens", "INT64", [1, 2], {"int64_contents": [5]}),
            ("sequence_lengths", "INT64", [1, 1], {"int64_contents": [2]}),
        ),
        "inputs.tokens: got '1 elements', allowed: 2, to match the shape",
    ),
    "rows differ": (
        request(PAIR[0], ("sequence_lengths", "INT64", [2, 1]), raw=[IDS, TWO * 2]),
        "inputs.sequence_lengths: got '2 rows for 1 of `tokens`'",
    ),
    "length 0": (
        request(*PAIR, raw=[IDS, integers(0)]),
        r"inputs.sequence_lengths\[0\]: got 0, allowed: from 1 to 2",
    ),
    "length 3": (
        request(*PAIR, raw=[IDS, integers(3)]),
        r"inputs.sequence_lengths\[0\]: got 3, allowed: from 1 to 2",
    ),
    "longer than the model": (
        request(("tokens", "INT64", [1, 200]), PAIR[1], raw=[integers(*[5] * 200), integers(129)]),
        r"inputs.sequence_lengths\[0\]: got 129, allowed: from 1 to 128",
    ),
    "id beyond": (
        request(*PAIR, raw=[integers(5, 60), TWO]),
        r"inputs.tokens\[0\]: got '60 at position 1', allowed: ids from 0 to 59",
    ),
    "id below": (request(*PAIR, raw=[integers(-1, 5), TWO]), r"inputs.tokens\[0\]: got '-1 at position 0'"),
    "other output": (
        request(("sentences", "BYTES", [1, 1]), raw=[W1], outputs=["scores"]),
        r"outputs\[0\]: got 'scores'",
    ),
    "output twice": (
        request(("sentences", "BYTES", [1, 1]), raw=[W1], outputs=["rewards", "rewards"]),
        r"outputs\[1\]: got '`rewards` twice'",
    ),
    "priority": (
        request(
            ("sentences", "BYTES", [1, 1]),
            raw=[W1],
            parameters={"priority": pb.InferParameter(int64_param=-1)},
        ),
        "parameters.priority: got -1, allowed: an integer from 0 to",
    ),
    "timeout": (
        request(
            ("sentences", "BYTES", [1, 1]),
            raw=[W1],
            parameters={"timeout": pb.InferParameter(string_param="1")},
        ),
        "parameters.timeout: got 'a str', allowed: an integer from 0 to",
    ),
}


@pytest.fixture(scope="module")
def channel(tmp_path_factory):
    model = tiny_reward_model(tmp_path_factory.mktemp("reward"))
    with Threaded() as threaded:
        world = threaded.serve(reward_service(model, batching={"max_items": 64}, max_text_bytes=1000))
        with grpc.insecure_channel(world.address) as channel:
            yield channel


@pytest.mark.parametrize("name", INVALID)
def test_invalid_request_is_the_callers_mistake(channel, name):
    message, expected = INVALID[name]
    with pytest.raises(grpc.RpcError) as error:
        pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=20)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(expected, error.value.details()), error.value.details()


def test_shared_memory_and_classification_are_refused(channel):
    stub = pb_grpc.GRPCInferenceServiceStub(channel)
    memory = request(("sentences", "BYTES", [1, 1]))
    memory.inputs[0].parameters["shared_memory_region"].string_param = "a"
    classes = request(("sentences", "BYTES", [1, 1]), raw=[W1], outputs=["rewards"])
    classes.outputs[0].parameters["classification"].int64_param = 3
    for message, field in ((memory, "inputs.sentences.parameters"), (classes, "outputs.rewards.parameters")):
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(message, timeout=20)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details().startswith(field)


@pytest.mark.parametrize("size", [100_000, 2_000_000], ids=["within", "beyond the limit of a text"])
def test_long_name_is_not_found_with_a_short_message_and_log_line(reward_folder, caplog, size: int):
    # The log shows the first refusals of a kind at INFO, and the others at DEBUG.
    caplog.set_level(logging.DEBUG, "services.runtime")
    long = "é\n" * (size // 3)
    with Threaded() as threaded:
        observe = ObserveSection(access_log="plain")
        world = threaded.serve(reward_service(reward_folder, observe=observe, allow_reload="always"))
        with grpc.insecure_channel(world.address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            scoring = reward_service_pb2_grpc.RewardServiceStub(channel)
            admin = reward_admin_service_pb2_grpc.RewardAdminServiceStub(channel)
            item = reward_service_pb2.ScoreItem(whole_text="w1")
            infer = request(("sentences", "BYTES", [1, 1]), raw=[W1])
            calls = [
                (stub.ModelInfer, pb.ModelInferRequest(model_name=long, inputs=infer.inputs)),
                (stub.ModelInfer, pb.ModelInferRequest(model_name="reward", model_version=long)),
                (stub.ModelMetadata, pb.ModelMetadataRequest(name=long)),
                (stub.ModelConfig, pb.ModelConfigRequest(name="reward", version=long)),
                (stub.ModelStatistics, pb.ModelStatisticsRequest(name=long)),
                (
                    admin.PromoteCanary,
                    reward_admin_service_pb2.PromoteCanaryRequest(model_version=long),
                ),
                (scoring.Score, reward_service_pb2.ScoreRequest(items=[item], model_version=long)),
            ]
            for call, message in calls:
                with pytest.raises(grpc.RpcError) as error:
                    call(message, timeout=20)
                assert error.value.code() is grpc.StatusCode.NOT_FOUND, error.value
                assert len(error.value.details()) < 300
    refused = [record for record in caplog.records if "NotFound" in record.getMessage()]
    assert len(refused) == len(calls)
    for record in caplog.records:
        for formatter in (HumanFormatter(), JsonFormatter()):
            line = formatter.format(record)
            assert "\n" not in line
            assert len(line) < 800, line
