"""The Open Inference Protocol over gRPC: an unchanged tritonclient, blocking and asynchronous."""

from __future__ import annotations

import queue
import random
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc import aio
from tritonclient.grpc import service_pb2_grpc as pb_grpc
from tritonclient.utils import InferenceServerException

from fairlead import RewardClient, TokenPair
from fairlead.types import WholeText
from tests.tiny import tiny_reward_model
from tests.unit.services.open_inference.grpc_requests import W1, request, tokens_of
from tests.unit.services.reward.reward_world import Threaded, reward_service

TEXTS = ["w1 w2 w3", "w4", "", "w5 w6 w7 w8 w9 w10", "<s> w1 w2 w3 </s>"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def served(model):
    with Threaded() as threaded:
        yield threaded.serve(reward_service(model, batching={"max_items": 64}, max_text_bytes=1000))


@pytest.fixture(scope="module")
def expected(served) -> dict[str, float]:
    with RewardClient(served.address) as client:
        return dict(zip(TEXTS, client.score([WholeText(text) for text in TEXTS]).scores, strict=True))


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.address) as client:
        yield client


def sentences(texts, module=triton):
    tensor = module.InferInput("sentences", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
    return tensor


def rows_of(count: int) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(4, 60) for _ in range(rng.randrange(1, 60))] for _ in range(count)]


def test_client_reads_health_metadata_configuration_and_index(served, client):
    version = served.version
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("reward")
    assert client.is_model_ready("reward", version)
    assert not client.is_model_ready("reward", "2")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata().name == "fairlead"
    metadata = client.get_model_metadata("reward", as_json=True)
    number = str(int(version, 16)) if not version.isdecimal() else version
    assert metadata["versions"] == [number]
    assert client.is_model_ready("reward", number)
    assert {one["name"]: (one["datatype"], one["shape"]) for one in metadata["inputs"]} == {
        "sentences": ("BYTES", ["-1", "1"]),
        "tokens": ("INT64", ["-1", "-1"]),
        "sequence_lengths": ("INT64", ["-1", "1"]),
    }
    assert metadata["outputs"] == [{"name": "rewards", "datatype": "FP32", "shape": ["-1", "1"]}]
    config = client.get_model_config("reward").config
    assert config.max_batch_size == 64
    assert [(one.name, list(one.dims), one.optional) for one in config.input] == [
        ("sentences", [1], True),
        ("tokens", [-1], True),
        ("sequence_lengths", [1], True),
    ]
    index = client.get_model_repository_index()
    assert [(one.name, one.version, one.state) for one in index.models] == [("reward", number, "READY")]
    assert not client.get_system_shared_memory_status().regions
    client.unregister_system_shared_memory()


def test_sentences_are_scored_as_whole_texts(served, client, expected):
    result = client.infer("reward", [sentences(TEXTS)], request_id="seven")
    rewards = result.as_numpy("rewards")
    assert rewards.dtype == np.float32
    assert rewards.shape == (5, 1)
    assert rewards[:, 0].tolist() == pytest.approx([expected[text] for text in TEXTS], abs=1e-6)
    response = result.get_response()
    assert response.id == "seven"
    assert response.parameters["model_version"].string_param == served.version
    assert response.model_version.isdecimal()
    assert client.get_model_metadata("reward").versions == [response.model_version]
    assert response.parameters["num_tokens"].int64_param == 5 + 3 + 2 + 8 + 5
    assert {"queue_seconds", "compute_seconds"} <= set(response.parameters)


def test_tokens_are_scored_up_to_their_lengths(served, client):
    rows = rows_of(40)
    outputs = [triton.InferRequestedOutput("rewards")]
    found = client.infer("reward", tokens_of(rows, triton), outputs=outputs, priority=2, timeout=30_000_000)
    with RewardClient(served.address) as ours:
        scores = ours.score([TokenPair((), tuple(row)) for row in rows]).scores
    assert found.as_numpy("rewards")[:, 0].tolist() == pytest.approx(list(scores), abs=1e-5)


def test_version_can_be_requested(served, client):
    version = served.version
    client.infer("reward", [sentences(["w1"])], model_version=version)
    with pytest.raises(
        InferenceServerException, match="'reward' has no version '2' on this replica; it serves "
    ) as error:
        client.infer("reward", [sentences(["w1"])], model_version="2")
    assert error.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="no model 'other'; this server has 'reward'"):
        client.infer("other", [sentences(["w1"])])


def test_unsupported_parts_are_refused_with_a_reason(client):
    for call in (
        lambda: client.load_model("reward"),
        lambda: client.unload_model("reward"),
        lambda: client.register_system_shared_memory("a", "/a", 10),
        lambda: client.get_trace_settings("reward"),
        client.get_log_settings,
    ):
        with pytest.raises(InferenceServerException) as error:
            call()
        assert error.value.status() == "StatusCode.UNIMPLEMENTED"
        assert len(str(error.value)) > 40


def test_statistics_count_successes_and_failures(served):
    name, version = "reward", served.version
    with triton.InferenceServerClient(served.address) as client:
        (before,) = client.get_inference_statistics(name).model_stats
        for _ in range(3):
            client.infer(name, [sentences(["w1", "w2"])])
        with pytest.raises(InferenceServerException):
            client.infer(name, [sentences(["w1"] * 65)])
        (after,) = client.get_inference_statistics("", version).model_stats
    assert after.inference_count - before.inference_count == 6
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.last_inference >= before.last_inference > 0 or before.last_inference == 0


def test_blocking_stream_answers_in_order_and_survives_errors(client, expected):
    found: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)))
    asked = [TEXTS[n % 5 : n % 5 + 1] for n in range(50)]
    for number, texts in enumerate(asked):
        name = "other" if number == 20 else "reward"
        client.async_stream_infer(name, [sentences(texts)], request_id=str(number))
    client.stop_stream()
    answers = [found.get(timeout=20) for _ in asked]
    for number, ((result, error), (text,)) in enumerate(zip(answers, asked, strict=True)):
        if number == 20:
            assert "no model 'other'" in str(error)
            continue
        assert error is None
        assert result.get_response().id == str(number)
        assert result.as_numpy("rewards")[0, 0] == pytest.approx(expected[text], abs=1e-5)


async def test_asynchronous_client_and_its_stream(model):
    async with (
        reward_service(model) as world,
        triton_aio.InferenceServerClient(world.address) as client,
    ):
        assert await client.is_server_ready()
        single = [await client.infer("reward", [sentences([text], triton_aio)]) for text in TEXTS]

        async def requests():
            for number, text in enumerate(TEXTS * 10):
                yield {
                    "model_name": "reward",
                    "inputs": [sentences([text], triton_aio)],
                    "request_id": str(number),
                }

        count = 0
        async for result, error in client.stream_infer(requests()):
            assert error is None
            response = result.get_response()
            assert response.id == str(count)
            assert response.parameters["triton_final_response"].bool_param
            assert result.as_numpy("rewards") == pytest.approx(
                single[count % 5].as_numpy("rewards"), abs=1e-5
            )
            count += 1
        assert count == 50
        assert (
            world.registry.get_sample_value(
                "grpc_server_msg_received_total",
                {
                    "grpc_type": "bidi_stream",
                    "grpc_service": "inference.GRPCInferenceService",
                    "grpc_method": "ModelStreamInfer",
                },
            )
            == 50
        )
        world.server.set_ready(False)
        assert not await client.is_server_ready()
        assert not await client.is_model_ready("reward")
        assert await client.is_server_live()


async def test_typed_contents_are_answered_by_typed_contents(model):
    rows = [[5, 6, 7], [8, 0, 0]]
    asked = [
        request(("sentences", "BYTES", [2, 1], {"bytes_contents": [b"w1 w2", b"w3"]})),
        request(
            ("sequence_lengths", "INT64", [2, 1], {"int64_contents": [3, 1]}),
            ("tokens", "INT64", [2, 3], {"int64_contents": [*rows[0], *rows[1]]}),
        ),
    ]
    async with reward_service(model) as world, aio.insecure_channel(world.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answers = [await stub.ModelInfer(message, timeout=20) for message in asked]
        raw = request(("sentences", "BYTES", [1, 1]), raw=[b"\x05\0\0\0w1 w2"])
        same = await stub.ModelInfer(raw, timeout=20)
    for answer in answers:
        assert not answer.raw_output_contents
        assert len(answer.outputs[0].contents.fp32_contents) == 2
    (first,) = np.frombuffer(same.raw_output_contents[0], dtype="<f4")
    assert first == pytest.approx(answers[0].outputs[0].contents.fp32_contents[0], abs=1e-6)


async def test_timeout_parameter_is_a_deadline(model):
    async with reward_service(model) as world, aio.insecure_channel(world.address) as channel:
        message = request(("sentences", "BYTES", [1, 1]), raw=[W1])
        message.parameters["timeout"].int64_param = 1
        with pytest.raises(aio.AioRpcError) as error:
            await pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_service_without_tritonclient_starts_and_logs_it():
    code = (
        "import sys, logging; sys.modules['tritonclient'] = None; logging.basicConfig();"
        "from services.reward.dialects import Dialects; from fairlead.config.serving import RewardSection;"
        "print(Dialects(None, RewardSection(), requires_keys=False, ready=lambda: True).names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout.strip() == "['fairlead.v1.RewardService', 'fairlead.v1.RewardAdminService']"
    assert "pip install 'fairlead-rlhf[triton]'" in done.stderr
