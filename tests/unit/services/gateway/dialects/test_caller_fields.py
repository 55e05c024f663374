"""Errors name the fields that the caller sent, in every dialect, whichever process refuses the request."""

from __future__ import annotations

import json

import pytest

from tests.gateway_world import gateway, policy_server, reward_server

LONG = "w3 " * 200
USER = {"role": "user", "content": "w1"}
ASSISTANT = {"role": "assistant", "content": "w2"}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
STOP = "w" * 2_000

REFUSED = [
    ("/v1/rewards", {"prompt": "w1", "responses": ["w2", LONG]}, "responses[1]"),
    (
        "/v1/rewards",
        {"items": [{"prompt": "", "response": "w1"}, {"prompt": "w1", "response": LONG}]},
        "items[1]",
    ),
    ("/v1/rewards", {"prompt": "w1 " * 20_000, "responses": ["w2"] * 1_000}, "responses"),
    ("/v1/rewards", {"prompt": [USER] * 4_001, "responses": ["w2"] * 1_000}, "responses"),
    ("/v1/rewards", {"prompt": [USER], "responses": ["w2"]}, "prompt"),
    ("/v1/rewards", {"items": [{"prompt": [USER], "response": "w2"}]}, "items[0].prompt"),
    ("/v1/rewards", {"items": [{"messages": [USER, ASSISTANT]}]}, "items[0].messages"),
    ("/v1/rewards", {"items": [{"messages": [USER, USER]}]}, "items[0].messages"),
    ("/v1/rewards", {"prompt": [{"role": "user"}], "responses": ["w2"]}, "prompt[0].content"),
    ("/v1/rewards", {"prompt": {"a": 1}, "responses": ["w2"]}, "prompt"),
    ("/v1/rewards:rank", {"prompt": "w1", "responses": ["w2", LONG]}, "responses[1]"),
    ("/v1/rewards:best-of-n", {"prompt": "w1", "responses": ["w2", LONG]}, "responses[1]"),
    ("/v1/rewards:best-of-n", {"prompt": LONG}, "prompt"),
    ("/v1/rewards:best-of-n", {"prompt": [USER, ASSISTANT, USER]}, "prompt"),
    ("/v1/rewards:best-of-n", {"prompt": "w1", "sampling": {"n": 1_000}}, "sampling.n"),
    ("/v1/rewards:best-of-n", {"prompt": "w1", "sampling": {"stop": ["", STOP]}}, "sampling.stop[1]"),
    ("/get_reward", {"query": ["w1", LONG]}, "query[1]"),
    ("/classify", {"input": LONG}, "input"),
    ("/classify", {"input": ["w1", LONG]}, "input[1]"),
    ("/classify", {"input": [[1, 2], [1, 59, 60]]}, "input[1]"),
    ("/v1/embeddings", {"input": ["w1", LONG]}, "input[1]"),
    ("/v1/embeddings", {"input": [1, "w1"]}, "input[0]"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": "w1"}]}, "messages"),
    ("/v1/chat/completions", {"messages": [USER, ASSISTANT]}, "messages[1]"),
    ("/v1/chat/completions", {"messages": [USER], "n": 100}, "n"),
    ("/v1/chat/completions", {"messages": [USER], "n": 100, "stream": True}, "n"),
    ("/v1/chat/completions", {"messages": [USER], "stop": STOP}, "stop"),
    ("/v1/chat/completions", {"messages": [USER], "stop": ["w1", "", STOP]}, "stop[2]"),
    ("/v1/chat/completions", {"messages": [{**USER, "content": None}]}, "messages[0].content"),
    ("/v1/chat/completions", {"messages": [{**USER, "content": [IMAGE]}]}, "messages[0].content[0].type"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
]
TENSORS = [
    (
        {"name": "sentences", "datatype": "BYTES", "shape": [2, 1], "data": ["w1", LONG]},
        "inputs.sentences[1]",
    ),
    ({"name": "tokens", "datatype": "INT64", "shape": [1, 2], "data": [1, 60]}, "inputs.tokens[0]"),
]


@pytest.mark.timeout(120)
async def test_errors_name_fields_of_the_request(reward_folder, tmp_path):
    async with (
        reward_server(reward_folder) as reward,
        policy_server(tmp_path / "policy") as policy,
        gateway(reward=reward, policy=policy.address) as http,
    ):
        for path, body, field in REFUSED:
            answer = await http.post(path, body)
            assert answer.status == 400, (path, body)
            if path == "/get_reward":
                named = answer.json["detail"].split(":")[0]
            else:
                named = answer.error["field" if path.startswith("/v1/rewards") else "param"]
                assert answer.error["message"].startswith(f"{field}: got ")
            assert named == field, answer.body
            if "param" in answer.body.decode():
                is_long = LONG in json.dumps(body)
                assert answer.error["code"] == ("context_length_exceeded" if is_long else "invalid_argument")
                assert answer.error["message"].endswith("context length is exceeded.") == is_long
        lengths = {"name": "sequence_lengths", "datatype": "INT64", "shape": [1, 1], "data": [2]}
        for tensor, field in TENSORS:
            inputs = [tensor] if tensor["name"] == "sentences" else [tensor, lengths]
            answer = await http.post("/v2/models/reward/infer", {"inputs": inputs})
            assert answer.error.startswith(f"{field}: got ")
