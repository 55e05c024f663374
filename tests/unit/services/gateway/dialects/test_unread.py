"""Keys that a dialect does not read: refused by name where they would change the answer, else accepted."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from fairlead.errors import InvalidInput
from services.gateway.dialects.openai_chat import ChatRequest
from services.gateway.dialects.openrlhf import GetRewardRequest
from services.gateway.dialects.sglang import EmbeddingsRequest
from services.gateway.dialects.vllm import ClassifyRequest

USER = {"role": "user", "content": "w1"}
BODIES: dict[type[BaseModel], dict[str, object]] = {
    ChatRequest: {"messages": [USER]},
    ClassifyRequest: {"input": "w1"},
    GetRewardRequest: {"query": ["w1"]},
    EmbeddingsRequest: {"input": "w1"},
}
CHANGES = {
    "functions": [{"name": "f"}],
    "tools": [{"type": "function"}],
    "tool_choice": "required",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy"},
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.5,
    "stop_token_ids": [1],
    "response_format": {"type": "json_object"},
    "logit_bias": {"5": 100},
    "logprobs": True,
    "guided_json": {},
    "truncate_prompt_tokens": 5,
    "a_future_option": False,
}
HARMLESS = {
    **{"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "tools": [], "min_p": 0},
    **{"repetition_penalty": 1.0, "modalities": ["text"], "response_format": {"type": "text"}},
    **{"tool_choice": "auto", "audio": None, "a_future_option": None, "logprobs": False},
}


@pytest.mark.parametrize("kind", BODIES)
def test_requests_with_unread_keys(kind):
    body = BODIES[kind]
    kind.model_validate({**body, **HARMLESS})
    for key, value in CHANGES.items():
        with pytest.raises(InvalidInput) as caught:
            kind.model_validate({**body, key: value})
        assert caught.value.field == key
        assert "not supported" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reasoning_content", "think"),
        ("tool_calls", [{"id": "1"}]),
        ("name", "anna"),
        ("weight", 0),
        ("audio", {"id": "1"}),
    ],
)
def test_messages_with_unread_keys(key, value):
    said = {"role": "assistant", "content": "w2", key: value}
    with pytest.raises(InvalidInput) as caught:
        ChatRequest.model_validate({"messages": [USER, said, USER]})
    assert caught.value.field == f"messages[1].{key}"
    ChatRequest.model_validate({"messages": [USER, said | {key: None}, USER]})


def test_options_of_a_stream_are_read_or_refused():
    body = {"messages": [USER], "stream": True, "model": None}
    ChatRequest.model_validate(
        body | {"stream_options": {"include_usage": True, "include_obfuscation": False}}
    )
    ChatRequest.model_validate(body | {"stream_options": {"continuous_usage_stats": False}})
    for key in ("continuous_usage_stats", "include_usages"):
        with pytest.raises(InvalidInput) as caught:
            ChatRequest.model_validate(body | {"stream_options": {key: True}})
        assert caught.value.field == f"stream_options.{key}"


def test_top_k_is_honoured():
    body = {"messages": [USER]}
    sampled = [
        ChatRequest.model_validate(body | {"top_k": k}).sampling(default_max_tokens=4) for k in (7, 0, -1)
    ]
    assert [one.top_k for one in sampled] == [7, 0, 0]
