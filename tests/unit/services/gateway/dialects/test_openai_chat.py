"""Chat completions of a real policy, compared with the policy service and called by OpenAI's own client."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
from pathlib import Path

import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.clients import AsyncPolicyClient
from fairlead.config.http import GatewaySection
from fairlead.data.chat import Chat, prompt
from fairlead.data.encoding import encode_prompt
from fairlead.data.lines import Line
from fairlead.data.scorable import scorable
from fairlead.errors import ConfigError
from fairlead.types import Completion, FinishReason, Message, SamplingParams
from services.gateway.dialects.openai_chat import StopCutter, cut_at_stop
from services.gateway.exchange_log import ExchangeLog
from tests.gateway_world import Gateway, RunningPolicy, gateway, policy_server, reward_server
from tests.tiny import tiny_reward_model
from tests.waiting import until

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}w50 {% elif m['role'] == 'user' %}w51 "
    "{% else %}w52 {% endif %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w52{% endif %}"
)
TURNS = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
GREEDY = {"messages": TURNS, "temperature": 0, "max_completion_tokens": 9}


@pytest.fixture
async def policy(tmp_path):
    async with policy_server(tmp_path / "policy", chat_template=TEMPLATE) as found:
        yield found


@pytest.fixture
async def http(policy, tmp_path):
    async with gateway(policy=policy.address, chat_log=str(tmp_path / "log" / "chat.jsonl")) as found:
        yield found


async def greedy(policy: RunningPolicy, turns: list[dict[str, str]], tokens: int) -> Completion:
    """Return the policy's greedy answer to the rendered turns, sent as token ids."""
    chat = Chat(tuple(Message(**turn) for turn in turns))
    ids = encode_prompt(policy.tokenizer, chat)
    sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
    async with AsyncPolicyClient(policy.address) as client:
        return (await client.generate(ids, sampling))[0]


def events(body: bytes) -> list[object]:
    lines = [part.removeprefix("data: ") for part in body.decode().split("\n\n") if part]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_answer_equals_the_policys_answer_to_the_rendered_turns(http: Gateway, policy: RunningPolicy):
    expected = await greedy(policy, TURNS, 9)
    found = (await http.post("/v1/chat/completions", {"model": "policy", **GREEDY}, x_request_id="a")).json
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert (choice["finish_reason"], choice["index"]) == ("length", 0)
    assert (found["id"], found["object"], found["system_fingerprint"]) == (
        "chatcmpl-a",
        "chat.completion",
        "0-0",
    )
    # Rendered: w50 w1 w51 w2 w3 w52, without a second BOS.
    assert found["usage"] == {"prompt_tokens": 6, "completion_tokens": 9, "total_tokens": 15}
    parts = [{"role": "developer", "content": [{"type": "text", "text": "w1"}]}, TURNS[1]]
    again = (await http.post("/v1/chat/completions", {**GREEDY, "messages": parts})).json
    assert again["choices"] == found["choices"]


async def test_streamed_pieces_join_to_the_whole_answer(http: Gateway, policy: RunningPolicy):
    expected = await greedy(policy, TURNS, 9)
    body = {**GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    answer = await http.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage = events(answer.body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == expected.text
    assert len([delta for delta in deltas if delta.get("content")]) > 3
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 6, "completion_tokens": 9, "total_tokens": 15}


async def test_top_k_is_honoured_and_unsupported_options_are_refused(http: Gateway, policy: RunningPolicy):
    expected = await greedy(policy, TURNS, 9)
    body = {"messages": TURNS, "max_tokens": 9, "seed": 3}
    most_likely = (await http.post("/v1/chat/completions", body | {"top_k": 1})).json
    assert most_likely["choices"][0]["message"]["content"] == expected.text
    for key, value in {"min_p": 0.1, "tools": [{"type": "function"}], "stop_token_ids": [1]}.items():
        answer = await http.post("/v1/chat/completions", body | {key: value})
        assert (answer.status, answer.error["param"]) == (400, key)
    named = {**TURNS[1], "name": "anna"}
    answer = await http.post("/v1/chat/completions", body | {"messages": [TURNS[0], named]})
    assert (answer.status, answer.error["param"]) == (400, "messages[1].name")


async def test_stop_text_ends_an_answer_and_is_not_part_of_it(http: Gateway):
    asked = {"messages": TURNS, "seed": 8, "max_tokens": 12}
    text = (await http.post("/v1/chat/completions", asked)).json["choices"][0]["message"]["content"]
    # It starts within one word and ends within the next, so the first piece only contains its start.
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    body = asked | {"stop": ["never", stop]}
    whole = (await http.post("/v1/chat/completions", body)).json["choices"][0]
    assert whole["finish_reason"] == "stop"
    assert whole["message"]["content"] == text[: text.index(stop)]
    chunks = events((await http.post("/v1/chat/completions", body | {"stream": True})).body)
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == text[: text.index(stop)]


async def test_seed_reproduces_several_answers(http: Gateway):
    body = {"messages": TURNS, "n": 3, "seed": 5, "max_tokens": 12}
    first, again = [(await http.post("/v1/chat/completions", body)).json["choices"] for _ in range(2)]
    assert first == again
    assert len({choice["message"]["content"] for choice in first}) == 3
    chunks = events((await http.post("/v1/chat/completions", body | {"stream": True})).body)
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in first]


def calls(address: str) -> dict[str, object]:
    """Call the gateway with OpenAI's own client; return the results by name."""
    found: dict[str, object] = {}
    with openai.OpenAI(base_url=f"http://{address}/v1", api_key="unused", max_retries=0) as client:
        found["models"] = [model.id for model in client.models.list()]
        answer = client.chat.completions.create(
            model="policy", messages=TURNS, temperature=0, max_completion_tokens=9
        )
        found["whole"] = answer.choices[0].message.content
        found["usage"] = answer.usage.total_tokens
        with client.chat.completions.create(
            model="policy", messages=TURNS, temperature=0, max_tokens=9, stream=True
        ) as stream:
            found["stream"] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        for name, arguments in {
            "model": {"model": "gpt-4", "messages": TURNS},
            "roles": {"model": "policy", "messages": [{"role": "assistant", "content": "w1"}]},
            "tools": {"model": "policy", "messages": TURNS, "logprobs": True},
        }.items():
            try:
                client.chat.completions.create(**arguments)
            except openai.APIStatusError as error:
                found[name] = type(error), error.code, error.param
    return found


async def test_openais_own_client_works(http: Gateway, policy: RunningPolicy):
    expected = await greedy(policy, TURNS, 9)
    found = await asyncio.to_thread(calls, http.address)
    assert found["whole"] == found["stream"] == expected.text
    assert found["usage"] == 15
    assert len(found["models"]) == 1
    assert found["model"] == (openai.NotFoundError, "not_found", None)
    assert found["roles"] == (openai.BadRequestError, "invalid_argument", "messages[0]")
    assert found["tools"] == (openai.BadRequestError, "invalid_argument", "logprobs")


async def test_policy_without_a_chat_template_accepts_a_single_user_message(tmp_path):
    async with policy_server(tmp_path / "policy") as policy, gateway(policy=policy.address) as http:
        async with AsyncPolicyClient(policy.address) as client:
            sampling = SamplingParams(temperature=0, max_new_tokens=9)
            expected = (await client.generate("w2 w3", sampling))[0].text
        body = {**GREEDY, "messages": TURNS[1:]}
        answer = await http.post("/v1/chat/completions", body)
        assert answer.json["choices"][0]["message"]["content"] == expected
        answer = await http.post("/v1/chat/completions", GREEDY)
        assert (answer.status, answer.error["param"]) == (400, "messages")
        assert "this policy has no chat template" in answer.error["message"]
        scores = await http.post("/v1/rewards", {"prompt": "w2", "responses": ["w1"]})
        assert (scores.status, scores.error["type"]) == (501, "unimplemented")


async def test_chat_log_lines_are_readable_as_prompts_and_responses(http: Gateway, tmp_path):
    body = {**GREEDY, "n": 2, "temperature": 1.0, "seed": 4}
    whole = (await http.post("/v1/chat/completions", body, x_request_id="one")).json
    await http.post("/v1/chat/completions", body | {"stream": True}, x_request_id="two")
    await http.post("/v1/chat/completions", {"messages": []})
    path = tmp_path / "log" / "chat.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["request_id"], second["request_id"]) == ("one", "two")
    assert first["responses"] == second["responses"]
    assert [one["text"] for one in first["responses"]] == [
        choice["message"]["content"] for choice in whole["choices"]
    ]
    assert first["responses"][0]["weight_versions"] == ["0-0"]
    line = Line("chat.jsonl", 1, first)
    turns = tuple(Message(**turn) for turn in TURNS)
    assert prompt(line) == Chat(turns)
    assert [(item.messages, item.response) for item in scorable(line).items] == [
        (turns, one["text"]) for one in first["responses"]
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_chat_log_is_rotated_and_the_oldest_file_deleted(tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    log = ExchangeLog(GatewaySection(chat_log=str(path), chat_log_files=2), max_bytes=1024)
    completion = Completion((1,), (0.0,), FinishReason.STOP, ())
    for number in range(40):
        log.add(f"{number:02}", [Message("user", "é" * 40)], [("w" * 40, completion)], SamplingParams())
    log.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["chat.jsonl", "chat.jsonl.1", "chat.jsonl.2"]
    files = [tmp_path / name for name in ("chat.jsonl.2", "chat.jsonl.1", "chat.jsonl")]
    assert all(one.stat().st_size <= 1024 for one in files)
    lines = [json.loads(line) for one in files for line in one.read_text().splitlines()]
    numbers = [int(line["request_id"]) for line in lines]
    assert numbers == list(range(numbers[0], 40))
    with pytest.raises(ConfigError, match="gateway.chat_log"):
        ExchangeLog(GatewaySection(chat_log=str(path / "no_folder" / "x")))


async def test_disconnect_frees_the_policys_slots(http: Gateway, policy: RunningPolicy):
    for stream in (True, False):
        body = json.dumps({"messages": TURNS, "n": 4, "max_tokens": 100_000, "stream": stream})
        host, port = http.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        if stream:
            await reader.readuntil(b"data: ")
        await until(lambda: policy.slots_used == 4)
        writer.close()
        await writer.wait_closed()
        await until(lambda: policy.slots_used == 0)
        await until(lambda: http.registry.get_sample_value("fairlead_gateway_in_flight_requests") == 0)
    assert http.count(dialect="openai", status="499") == 1


@pytest.mark.parametrize(
    ("reason", "status", "kind"), [("deadline", 504, "deadline_exceeded"), ("stop", 503, "unavailable")]
)
async def test_stream_that_breaks_off_is_counted_with_the_status_of_its_error(
    tmp_path, caplog, reason, status, kind
):
    caplog.set_level(logging.INFO, "services.gateway.access")
    reached, resume = threading.Event(), threading.Event()
    steps = itertools.count(1)

    def before_step() -> None:
        # The engine checks its model in the thread that creates it.
        if threading.current_thread().name == "engine" and next(steps) > 3:
            reached.set()
            resume.wait(60)

    body = {"messages": TURNS[1:], "stream": True, "max_tokens": 50}
    seconds = "2" if reason == "deadline" else "60"
    async with (
        policy_server(tmp_path / "policy", before_step=before_step) as policy,
        gateway(policy=policy.address) as http,
    ):
        try:
            asked = asyncio.create_task(http.post("/v1/chat/completions", body, x_request_timeout=seconds))
            await until(reached.is_set)
            if reason == "stop":
                await policy.drain()
            answer = await asked
        finally:
            resume.set()
        await until(lambda: http.count(dialect="openai", status=str(status)) == 1)
        assert http.count(dialect="openai", status="200") == 0
    assert answer.status == 200, "the status was sent before the error"
    parts = [part for part in answer.body.decode().split("\n\n") if part]
    *chunks, last = [json.loads(part.removeprefix("data: ")) for part in parts]
    assert len([one for one in chunks if one["choices"][0]["delta"].get("content")]) >= 2
    assert last["error"]["code"] == kind
    (line,) = [record for record in caplog.records if record.name == "services.gateway.access"]
    assert line.status == status


async def test_best_of_n_generates_and_ranks_candidates(tmp_path, policy: RunningPolicy):
    async with reward_server(tiny_reward_model(tmp_path / "reward"), calibration_temperature=1.5) as reward:
        async with gateway(policy=policy.address, reward=reward) as http:
            body = {"prompt": "w2 w3", "sampling": {"n": 4, "seed": 3, "max_new_tokens": 6, "stop": ["w99"]}}
            found = (await http.post("/v1/rewards:best-of-n", body)).json
            async with AsyncPolicyClient(policy.address) as client:
                sampling = SamplingParams(seed=3, max_new_tokens=6)
                made = [one.text for one in await client.generate("w2 w3", sampling, num_samples=4)]
            given = (await http.post("/v1/rewards:rank", {"prompt": "w2 w3", "responses": made})).json
            assert found["generated"]
            assert found["ranking"] == given["ranking"]
            assert found["best"] == given["ranking"][0]
            assert [model["kind"] for model in (await http.get("/v1/models")).json["data"]] == [
                "reward",
                "policy",
            ]
            bad = await http.post("/v1/rewards:best-of-n", {"sampling": {"n": 4}})
            assert (bad.status, bad.error["field"]) == (400, "prompt")


@example(["b", "ab", "a"], ["a", "baba"])
@given(
    st.lists(st.text("ab", max_size=4), min_size=1, max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4)),
)
def test_stop_cutter_cuts_pieces_like_the_whole_text(pieces: list[str], stops: list[str]):
    cutter = StopCutter(stops)
    out = [cutter.add(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces)]
    whole = "".join(pieces)
    # The stop text that is complete first, where the policy also ends; of several, the longest.
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    assert "".join(out) == cut_at_stop(whole, stops) == whole[: min(ends)[1] if ends else len(whole)]
