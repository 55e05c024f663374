"""Fairlead's own HTTP dialect: every form of request returns the scores of the reward service."""

from __future__ import annotations

import math

import pytest

from fairlead.clients import AsyncRewardClient
from fairlead.clients.ranking import best_probabilities
from fairlead.types import Message, TextPair
from tests.gateway_world import Gateway, gateway, reward_server

RESPONSES = ["w3", "w5 w6", "w9 w9 w9", ""]


@pytest.fixture
async def reward(reward_folder):
    async with reward_server(reward_folder, calibration_temperature=2.0) as address:
        yield address


@pytest.fixture
async def http(reward):
    async with gateway(reward=reward) as found:
        yield found


async def scores(address: str, *items: TextPair) -> list[float]:
    async with AsyncRewardClient(address) as client:
        return list((await client.score(items)).scores)


async def test_rewards_returns_scores_model_and_version_of_the_service(
    http: Gateway, reward: str, reward_folder
):
    expected = await scores(reward, *(TextPair("w1 w2", response) for response in RESPONSES))
    answer = await http.post("/v1/rewards", {"prompt": "w1 w2", "responses": RESPONSES}, x_request_id="mine")
    assert answer.status == 200
    found = answer.json
    assert [one["index"] for one in found["rewards"]] == [0, 1, 2, 3]
    assert [one["reward"] for one in found["rewards"]] == pytest.approx(expected, abs=1e-5)
    # <s>, two words of the prompt, those of the response, </s>.
    assert [one["num_tokens"] for one in found["rewards"]] == [5, 6, 7, 4]
    assert found["total_tokens"] == 22
    assert (found["model"], found["request_id"], answer.headers["x-request-id"]) == (
        str(reward_folder),
        "mine",
        "mine",
    )
    async with AsyncRewardClient(reward) as client:
        assert found["model_version"] == (await client.info()).model_version
    timing = found["timing"]
    assert 0 <= timing["queue_seconds"] + timing["compute_seconds"] <= timing["total_seconds"] < 30
    assert not found["calibrated"]
    assert http.count(dialect="fairlead", status="200") == 1


async def test_rewards_accepts_items_and_names_the_one_that_fails(http: Gateway, reward: str):
    items = [
        {"prompt": "w1", "response": "w2"},
        {"prompt": "", "response": "w2"},
        {"prompt": [{"role": "user", "content": "w1"}], "response": "w2"},
    ]
    answer = await http.post("/v1/rewards", {"items": items[:2]})
    expected = await scores(reward, TextPair("w1", "w2"), TextPair("", "w2"))
    assert [one["reward"] for one in answer.json["rewards"]] == pytest.approx(expected, abs=1e-5)
    # This model has no chat template; the error names the item that needs one.
    answer = await http.post("/v1/rewards", {"items": items})
    assert (answer.status, answer.error["type"]) == (400, "invalid_argument")
    assert (answer.error["field"], answer.error["index"]) == ("items[2].prompt", 2)
    assert "no chat template" in answer.error["message"]


async def test_conversations_are_rendered_by_the_models_chat_template(tmp_path):
    from tests import architectures

    folder = tmp_path / "model"
    architectures.reward_model("llama", folder)
    turns = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
    async with reward_server(folder) as address, gateway(reward=address) as http:
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        expected = await scores(address, TextPair("", "w4", messages))
        whole = [*turns, {"role": "assistant", "content": "w4"}]
        for body in (
            {"items": [{"messages": whole}]},
            {"items": [{"prompt": turns, "response": "w4"}]},
            {"prompt": turns, "responses": ["w4"]},
        ):
            answer = await http.post("/v1/rewards", body)
            assert answer.status == 200, answer.body
            assert [one["reward"] for one in answer.json["rewards"]] == pytest.approx(expected, abs=1e-5)


async def test_calibrated_scores_are_divided_by_the_calibration_temperature(http: Gateway):
    body = {"prompt": "w1 w2", "responses": RESPONSES}
    raw = [one["reward"] for one in (await http.post("/v1/rewards", body)).json["rewards"]]
    answer = (await http.post("/v1/rewards", body | {"calibrated": True})).json
    assert (answer["calibrated"], answer["calibration_temperature"]) == (True, 2.0)
    assert [one["reward"] for one in answer["rewards"]] == pytest.approx([score / 2 for score in raw])


async def test_rank_returns_best_first_with_probabilities(http: Gateway):
    body = {"prompt": "w1 w2", "responses": RESPONSES}
    calibrated = [
        one["reward"] for one in (await http.post("/v1/rewards", body | {"calibrated": True})).json["rewards"]
    ]
    answer = (await http.post("/v1/rewards:rank", body)).json
    order = sorted(range(4), key=lambda index: -calibrated[index])
    assert [one["index"] for one in answer["ranking"]] == order
    assert [one["response"] for one in answer["ranking"]] == [RESPONSES[index] for index in order]
    total = sum(math.exp(score) for score in calibrated)
    for one in answer["ranking"]:
        assert one["probability"] == pytest.approx(math.exp(calibrated[one["index"]]) / total)
    raw = (await http.post("/v1/rewards:rank", body | {"calibrated": False})).json
    assert [one["index"] for one in raw["ranking"]] == order
    assert [one["probability"] for one in raw["ranking"]] == [None] * 4
    best = (await http.post("/v1/rewards:best-of-n", body)).json
    assert best["best"] == best["ranking"][0] == answer["ranking"][0]
    assert not best["generated"]


def test_probability_of_two_responses_is_bradley_terry():
    for difference in (-40.0, -1.0, 0.0, 0.3, 700.0):
        first, second = best_probabilities([difference, 0.0])
        assert first == pytest.approx(1 / (1 + math.exp(-difference)), rel=1e-9)
        assert first + second == pytest.approx(1)
    assert best_probabilities([5.0, 5.0, 5.0]) == pytest.approx([1 / 3] * 3)


async def test_calibrated_is_refused_without_a_calibration_temperature(reward_folder):
    async with reward_server(reward_folder) as address, gateway(reward=address) as http:
        body = {"prompt": "w1", "responses": ["w2", "w3"]}
        answer = await http.post("/v1/rewards", body | {"calibrated": True})
        assert (answer.status, answer.error["field"]) == (400, "calibrated")
        ranked = (await http.post("/v1/rewards:rank", body)).json
        assert (ranked["calibrated"], ranked["ranking"][0]["probability"]) == (False, None)


INVALID = [
    ({}, "body", "either `items`, or `prompt` and `responses`"),
    ({"prompt": "w1", "responses": []}, "responses", "got '0 entries', allowed: at least 1 entry"),
    ({"responses": ["w1", 7]}, "responses[1]", "allowed: a valid string"),
    ({"responses": ["w1"], "promt": "w2"}, "promt", "allowed: no such key; /docs lists the keys"),
    # Without a prompt the scores would be those of another question.
    ({"responses": ["w1"]}, "body", '`prompt` next to `responses`; "" if there is none'),
    ({"items": [{"prompt": "", "response": "w1"}, {"response": "w1"}]}, "items[1]", "`prompt` next to"),
    ({"items": [{"prompt": "", "response": "w1"}], "responses": ["w1"]}, "body", "either `items`"),
    (
        {"items": [{"prompt": "", "response": "w1"}, {"prompt": "w1"}]},
        "items[1]",
        "`response`, or `messages`",
    ),
    (
        {"items": [{"messages": [{"role": "user", "content": "w1"}]}]},
        "items[0].messages",
        "assistant's response",
    ),
    ({"prompt": [{"role": "tool", "content": ""}], "responses": ["w1"]}, "prompt[0].role", "'assistant'"),
    (
        {"prompt": [{"role": "assistant", "content": ""}], "responses": ["w1"]},
        "prompt",
        "whose last turn is not the assistant's",
    ),
    ({"responses": ["w1"], "priority": "now"}, "priority", "'online' or 'bulk'"),
    ({"responses": ["w1"], "calibrated": "yes"}, "calibrated", "valid boolean"),
    ({"prompt": "w1", "responses": ["w2", "w3 " * 200]}, "responses[1]", "at most 128 tokens"),
    ({"prompt": [{"role": "user"}], "responses": ["w1"]}, "prompt[0].content", "with the key `content`"),
    ([], "body", "allowed: a JSON object"),
    (None, "body", "allowed: a JSON object"),
]


async def test_invalid_field_is_named_with_its_path(http: Gateway):
    for body, field, allowed in INVALID:
        answer = await http.post("/v1/rewards", body)
        assert (answer.status, answer.error["type"], answer.error["field"]) == (
            400,
            "invalid_argument",
            field,
        )
        assert allowed in answer.error["message"]
        assert answer.error["request_id"] == answer.headers["x-request-id"]


INVALID_JSON = [
    b"",
    b"{",
    b'{"responses": ["\xff"]}',
    b'{"responses": ["\\ud800"]}',
    b'{"responses": [NaN]}',
    b"[" * 100_000,
    b'{"responses": ["w1"]} x',
]


async def test_error_of_an_empty_body_and_of_a_wrong_path_says_what_is_there(http: Gateway):
    empty = await http.ask("POST", "/v1/rewards", b"", {"content-type": "application/json"})
    assert empty.error["message"] == "body: got 'nothing', allowed: a JSON object"
    null = await http.ask("POST", "/v1/rewards", b"null", {"content-type": "application/json"})
    assert null.error["message"] == "body: got None, allowed: a JSON object"
    nowhere = await http.post("/v1/reward", {})
    assert (nowhere.status, nowhere.error["type"]) == (404, "not_found")
    assert nowhere.error["message"] == "there is no path /v1/reward; /docs lists the paths"
    long = await http.post(f"/v1/{'x' * 3_000}", {})
    assert len(long.error["message"]) < 200
    method = await http.get("/v1/rewards")
    assert (method.status, method.headers["allow"]) == (405, "POST")
    assert method.error["message"] == "/v1/rewards does not have this method, allowed: POST"


async def test_invalid_json_is_a_400(http: Gateway):
    for body in INVALID_JSON:
        answer = await http.post("/v1/rewards", body)
        assert (answer.status, answer.error["type"], answer.error["field"]) == (
            400,
            "invalid_argument",
            "body",
        )
        form = await http.ask(
            "POST", "/v1/rewards", body, {"content-type": "application/x-www-form-urlencoded"}
        )
        assert (form.status, form.error["field"]) == (400, "Content-Type")
