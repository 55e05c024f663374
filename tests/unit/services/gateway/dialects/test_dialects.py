"""Dialects of other projects: requests as their clients send them, responses as these clients read them.

Every score is compared with the one that the reward service returns for the same text over gRPC.
"""

from __future__ import annotations

import base64
import json
import math
import struct

import numpy as np
import pytest

from fairlead.clients import AsyncRewardClient
from fairlead.types import TokenPair, WholeText
from tests.gateway_world import Gateway, gateway, reward_server

TEXTS = ["<s> w1 w2 w3 </s>", "w4 w5", "w6 w7 w8 w9"]


@pytest.fixture
async def reward(reward_folder):
    async with reward_server(reward_folder, calibration_temperature=2.0) as address:
        yield address


@pytest.fixture
async def http(reward):
    async with gateway(reward=reward) as found:
        yield found


@pytest.fixture
async def expected(reward):
    async with AsyncRewardClient(reward) as client:
        return list((await client.score([WholeText(text) for text in TEXTS])).scores)


async def test_get_reward_answers_like_openrlhfs_own_server(http: Gateway, expected):
    # As remote_rm_utils calls requests.post(url, json=data, headers={...}): one sample per request.
    for text, score in zip(TEXTS, expected, strict=True):
        body = json.dumps({"query": [text], "prompts": ["w1"], "labels": [None]}).encode()
        answer = await http.ask(
            "POST", "/get_reward", body, {"Content-Type": "application/json", "Accept": "*/*"}
        )
        assert answer.status == 200
        found = answer.json
        assert set(found) == {"rewards", "scores", "extra_logs"}
        assert found["rewards"] == found["scores"] == pytest.approx([score], abs=1e-5)
    many = await http.post("/get_reward", {"query": TEXTS, "prompts": TEXTS, "labels": [None] * 3})
    assert many.json["rewards"] == pytest.approx(expected, abs=1e-5)
    assert many.json["extra_logs"]["reward_model_tokens"] == [5.0, 4.0, 6.0]
    wrong = await http.post("/get_reward", {"query": []})
    assert (wrong.status, list(wrong.json)) == (400, ["detail"])
    assert wrong.json["detail"].startswith("query: got '0 entries'")
    assert http.count(dialect="openrlhf", status="200") == 4


async def test_classify_returns_the_score_or_its_sigmoid(http: Gateway, expected, reward_folder):
    body = {
        "model": str(reward_folder),
        "input": TEXTS[0],
        "use_activation": False,
        "truncate_prompt_tokens": -1,
    }
    found = (await http.post("/classify", body)).json
    assert found["data"][-1]["probs"][-1] == pytest.approx(expected[0], abs=1e-5)
    assert (found["object"], found["model"], found["usage"]["prompt_tokens"]) == (
        "list",
        str(reward_folder),
        5,
    )
    many = (await http.post("/classify", {"input": TEXTS})).json["data"]
    assert [one["index"] for one in many] == [0, 1, 2]
    assert [one["num_classes"] for one in many] == [1, 1, 1]
    for one, score in zip(many, expected, strict=True):
        assert one["probs"] == pytest.approx([1 / (1 + math.exp(-score))])
    # verl 0.7 sends an older name; the newest one wins.
    for flags, plain in (
        ({"softmax": False}, True),
        ({"softmax": False, "activation": True}, False),
        ({"activation": False}, True),
        ({"activation": True}, False),
        ({"activation": False, "use_activation": True}, False),
    ):
        [one] = (await http.post("/classify", {"input": TEXTS[0]} | flags)).json["data"]
        score = expected[0] if plain else 1 / (1 + math.exp(-expected[0]))
        assert one["probs"] == pytest.approx([score], abs=1e-5), flags
    other = await http.post("/classify", {"model": "another", "input": "w1"})
    assert (other.status, other.error["code"]) == (404, "not_found")
    nothing = await http.post("/classify", {"model": "reward"})
    assert (nothing.status, nothing.error["param"], nothing.error["type"]) == (
        400,
        "input",
        "invalid_request_error",
    )


async def test_classify_accepts_token_ids(http: Gateway, reward):
    ids = [[1, 5, 6, 2], [7, 2]]
    async with AsyncRewardClient(reward) as client:
        scores = (await client.score([TokenPair((), tuple(one)) for one in ids])).scores
    many = (await http.post("/classify", {"input": ids, "use_activation": False})).json["data"]
    assert [one["probs"][0] for one in many] == pytest.approx(scores, abs=1e-5)
    one = (await http.post("/classify", {"input": ids[0], "use_activation": False})).json["data"]
    assert one[0]["probs"] == pytest.approx([scores[0]], abs=1e-5)
    for bad, place in (([5, 10**6], "input"), ([-1], "input[0]"), ([[1], [5, 2**31]], "input[1][1]")):
        answer = await http.post("/classify", {"input": bad})
        assert (answer.status, answer.error["param"]) == (400, place)


async def test_verl_names_the_model_by_a_path_of_its_own(reward, expected, reward_folder):
    path = "/data/models/my-reward-model"
    async with gateway(reward=reward, sections={"reward.aliases": [path]}) as http:
        # The bodies of RewardLoopWorker.compute_score_disrm with rollout.name vllm and sglang.
        classify = {"model": path, "input": TEXTS[0], "use_activation": False}
        found = (await http.post("/classify", classify)).json
        assert found["data"][-1]["probs"][-1] == pytest.approx(expected[0], abs=1e-5)
        embeddings = {"model": path, "input": TEXTS[0]}
        found = (await http.post("/v1/embeddings", embeddings)).json
        assert found["data"][-1]["embedding"][-1] == pytest.approx(expected[0], abs=1e-5)
        listed = (await http.get("/v1/models")).json["data"]
        assert [(one["id"], one["root"]) for one in listed] == [
            (name, str(reward_folder)) for name in (str(reward_folder), path)
        ]
        assert (await http.get(f"/v1/models/{path}")).json == listed[1]
    async with gateway(reward=reward) as http:
        for route, body in (("/classify", classify), ("/v1/embeddings", embeddings)):
            refused = await http.post(route, body)
            assert (refused.status, refused.error["code"]) == (404, "not_found")
            assert "add the name to reward.aliases" in refused.error["message"]


async def test_embeddings_are_scores(http: Gateway, expected):
    many = (await http.post("/v1/embeddings", {"input": TEXTS})).json
    assert [one["embedding"] for one in many["data"]] == [pytest.approx([score]) for score in expected]
    # OpenAI's own client asks for base64.
    found = (await http.post("/v1/embeddings", {"input": TEXTS[0], "encoding_format": "base64"})).json
    raw = base64.b64decode(found["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4") == pytest.approx([expected[0]])
    assert many["usage"] == {"prompt_tokens": 15, "total_tokens": 15}
    refused = await http.post("/v1/embeddings", {"input": "w1", "dimensions": 8})
    assert (refused.status, refused.error["param"]) == (400, "dimensions")


async def test_models_are_listed_in_openais_format(http: Gateway, reward_folder):
    found = (await http.get("/v1/models")).json
    assert found["object"] == "list"
    (model,) = found["data"]
    assert (model["id"], model["object"], model["kind"]) == (str(reward_folder), "model", "reward")
    assert model["max_model_len"] == 128


def tensor(name: str, datatype: str, shape: list[int], data: list[object]) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


async def test_infer_scores_json_sentences_and_tokens(http: Gateway, reward, expected):
    body = {"id": "7", "inputs": [tensor("sentences", "BYTES", [3, 1], [[text] for text in TEXTS])]}
    found = (await http.post("/v2/models/reward/infer", body)).json
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("rewards", "FP32", [3, 1])
    assert output["data"] == pytest.approx(expected, abs=1e-5)
    assert (found["id"], found["model_name"]) == ("7", "reward")
    assert found["parameters"]["num_tokens"] == 15
    assert found["parameters"]["calibration_temperature"] == 2.0
    ids = [[1, 5, 6, 2], [7, 2, 0, 0]]
    body = {
        "inputs": [
            tensor("tokens", "INT64", [2, 4], ids),
            tensor("sequence_lengths", "INT64", [2, 1], [[4], [2]]),
        ]
    }
    rewards = (await http.post("/v2/models/reward/infer", body)).json["outputs"][0]["data"]
    async with AsyncRewardClient(reward) as client:
        scores = (await client.score([TokenPair((), (1, 5, 6, 2)), TokenPair((), (7, 2))])).scores
    assert rewards == pytest.approx(scores, abs=1e-5)


async def test_infer_reads_and_returns_binary_tensors(http: Gateway, expected):
    raw = b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "sentences",
                    "datatype": "BYTES",
                    "shape": [3, 1],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "outputs": [{"name": "rewards", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = await http.ask("POST", "/v2/models/reward/infer", head + raw, headers)
    size = int(answer.headers["inference-header-content-length"])
    output = json.loads(answer.body[:size])["outputs"][0]
    assert output["parameters"] == {"binary_data_size": 12}
    assert np.frombuffer(answer.body[size:], "<f4") == pytest.approx(expected, abs=1e-5)


async def test_kserve_health_metadata_and_statistics(http: Gateway, reward_folder):
    # KServe's client reads the bodies of the server's health, and the status of the model's.
    assert (await http.get("/v2/health/live")).json == {"live": True}
    assert (await http.get("/v2/health/ready")).json == {"ready": True}
    assert (await http.get("/v2/models/reward/ready")).status == 200
    assert (await http.get("/v2")).json["name"] == "fairlead"
    metadata = (await http.get("/v2/models/reward")).json
    (version,) = metadata["versions"]
    assert [one["name"] for one in metadata["inputs"]] == ["sentences", "tokens", "sequence_lengths"]
    assert (await http.get(f"/v2/models/reward/versions/{version}")).json == metadata
    config = (await http.get("/v2/models/reward/config")).json
    assert (config["max_batch_size"], config["output"][0]["data_type"]) == (1024, "TYPE_FP32")
    assert (await http.post("/v2/repository/index", {})).json == [
        {"name": "reward", "version": version, "state": "READY", "reason": ""}
    ]
    await http.post(
        "/v2/models/reward/infer", {"inputs": [tensor("sentences", "BYTES", [2, 1], ["w1", "w2"])]}
    )
    await http.post(
        "/v2/models/reward/infer", {"inputs": [tensor("sentences", "BYTES", [1, 1], ["w1 " * 200])]}
    )
    (stats,) = (await http.get("/v2/models/reward/stats")).json["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (2, 1)
    assert (stats["inference_stats"]["success"]["count"], stats["inference_stats"]["fail"]["count"]) == (1, 1)
    assert stats["inference_stats"]["success"]["ns"] > 0
    for path in ("/v2/models/other", "/v2/models/reward/versions/2", "/v2/models/other/ready"):
        answer = await http.get(path)
        assert (answer.status, list(answer.json)) == (404, ["error"])
    load = await http.post("/v2/repository/models/reward/load", {})
    assert (load.status, list(load.json)) == (501, ["error"])


SENTENCES = tensor("sentences", "BYTES", [1, 1], ["w1"])
TOKENS = tensor("tokens", "INT64", [1, 2], [1, 2])
LENGTHS = tensor("sequence_lengths", "INT64", [1, 1], [2])


INVALID_TENSORS = [
    ([], "inputs: got 'none', allowed: `sentences`, or `tokens` and `sequence_lengths`"),
    (None, "inputs: got 'nothing'"),
    ([3], "inputs[0]: got 'a whole number', allowed: a tensor"),
    ([SENTENCES, SENTENCES], "inputs[1]: got '`sentences` twice'"),
    ([TOKENS], "allowed: `sentences`, or `tokens` and `sequence_lengths`"),
    ([SENTENCES | {"name": "words"}], "inputs[0]: got 'words'"),
    ([SENTENCES | {"datatype": "FP64"}], "inputs.sentences.datatype: got 'FP64', allowed: BYTES"),
    ([SENTENCES | {"shape": [2, 1]}], "got '1 elements', allowed: 2, to match the shape"),
    ([SENTENCES | {"shape": [2**31, 1]}], f"got '{2**31} rows', allowed: at most 1024"),
    ([SENTENCES | {"shape": [-1, -1]}], "inputs.sentences.shape: got [-1, -1], allowed: [B, 1]"),
    ([SENTENCES | {"shape": "x"}], "inputs.sentences.shape: got 'a text', allowed: a list of dimensions"),
    (
        [SENTENCES | {"shape": [1, 1, 1]}],
        "inputs.sentences.shape: got [1, 1, 1], allowed: [B, 1], B at least 1",
    ),
    ([SENTENCES | {"data": [5]}], "inputs.sentences[0]: got 'a whole number', allowed: a text"),
    ([SENTENCES | {"data": [""], "shape": [1]}, LENGTHS], "allowed: `sentences`, or `tokens`"),
    (
        [SENTENCES | {"parameters": {"binary_data_size": 9}}],
        "inputs[0]: got '0 bytes of data', allowed: 9, the value of binary_data_size",
    ),
    ([SENTENCES | {"parameters": {"binary_data_size": -9}}], "binary_data_size -9"),
    (
        [SENTENCES | {"parameters": {"shared_memory_region": "x"}}],
        "inputs.sentences.parameters: got 'shared_memory_region', allowed: the data in the request",
    ),
    ([TOKENS | {"datatype": "INT8", "data": [1, 300]}, LENGTHS], "inputs.tokens[1]: got 300"),
    (
        [TOKENS | {"data": [1.5, 2]}, LENGTHS],
        "inputs.tokens[0]: got 'a decimal number', allowed: a whole number",
    ),
    (
        [TOKENS | {"data": [1, 2**40]}, LENGTHS],
        f"inputs.tokens[0]: got '{2**40} at position 1', allowed: ids",
    ),
    ([TOKENS, LENGTHS | {"data": [3]}], "inputs.sequence_lengths[0]: got 3, allowed: from 1 to 2"),
    ([TOKENS, LENGTHS | {"data": [0]}], "inputs.sequence_lengths[0]: got 0"),
    (
        [TOKENS, LENGTHS | {"data": [1, 1], "shape": [2, 1]}],
        "got '2 rows for 1 of `tokens`', allowed: one row for each",
    ),
    (
        [TOKENS | {"shape": [2]}, LENGTHS],
        "inputs.tokens.shape: got [2], allowed: [B, S], each at least 1",
    ),
]


async def test_invalid_tensors_are_refused(http: Gateway):
    for inputs, error in INVALID_TENSORS:
        answer = await http.post("/v2/models/reward/infer", {"inputs": inputs})
        assert (answer.status, list(answer.json)) == (400, ["error"]), inputs
        assert error in answer.error, inputs


async def test_form_of_the_response_is_a_boolean(http: Gateway):
    named = {"name": "rewards", "parameters": {"binary_data": 1}}
    for extra, error in (
        ({"parameters": {"binary_data_output": "false"}}, "parameters.binary_data_output: got 'a text'"),
        ({"outputs": [named]}, "outputs[0].parameters.binary_data: got 'a whole number'"),
    ):
        answer = await http.post("/v2/models/reward/infer", {"inputs": [SENTENCES], **extra})
        assert (answer.status, answer.error) == (400, f"{error}, allowed: true or false")


INVALID_BYTES = [
    (b"\x02\x00", "inputs.sentences: got '0 elements', allowed: 1, to match the shape"),
    (b"\x09\x00\x00\x00w1", "inputs.sentences[0]: got 'a length of 9 bytes, but 2 bytes follow'"),
    (
        b"\x02\x00\x00\x00\xff\xfe",
        "inputs.sentences[0]: got 'invalid UTF-8 byte at position 0', allowed: UTF-8",
    ),
    (b"\x02\x00\x00\x00w1\x00\x00\x00\x00", "got '4 bytes after the last element', allowed: none"),
]


async def test_invalid_bytes_are_refused(http: Gateway):
    path = "/v2/models/reward/infer"
    for raw, error in INVALID_BYTES:
        entry = {
            "name": "sentences",
            "datatype": "BYTES",
            "shape": [1, 1],
            "parameters": {"binary_data_size": len(raw)},
        }
        head = json.dumps({"inputs": [entry]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answer = await http.ask("POST", path, head + raw, headers)
        assert answer.status == 400
        assert error in answer.error
        for size in ("-1", "x", str(10**9), "1" * 5_000):
            answer = await http.ask("POST", path, head + raw, {"Inference-Header-Content-Length": size})
            assert answer.status == 400
            assert answer.error.startswith("Inference-Header-Content-Length")
        extra = await http.ask("POST", path, head + raw + b"x", headers)
        assert "1 bytes after the last tensor" in extra.error or error in extra.error


async def test_one_model_is_described(http: Gateway, reward_folder):
    (listed,) = (await http.get("/v1/models")).json["data"]
    for name in ("reward", str(reward_folder)):
        assert (await http.get(f"/v1/models/{name}")).json == listed
    missing = await http.get("/v1/models/other")
    assert (missing.status, missing.error["type"]) == (404, "invalid_request_error")
