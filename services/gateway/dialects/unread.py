"""Keys of requests of OpenAI, vLLM and OpenRLHF that the gateway does not read, and which of them it accepts.

One list for all three. A key that would change the answer is refused by name; null counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairlead.errors import InvalidInput

IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "cache_salt", "priority"),
        *("parallel_tool_calls", "request_id", "return_token_ids", "include_obfuscation"),
        *("prompts", "labels"),
    }
)
"""Keys of a request that change nothing in the answer, for any value."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "continue_final_message": (False,),
    "skip_special_tokens": (True,),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "truncate_prompt_tokens": (-1,),  # the model's own limit, beyond which a text is refused
}
"""Keys of a request that are not supported, and the values with which they change nothing."""

_NEUTRAL_IN_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "annotations": ([],),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "weight": (1,),
}
_NEUTRAL_IN_PART: Mapping[str, tuple[Any, ...]] = {"annotations": ([],)}
_IGNORED_IN_PART = frozenset({"cache_control"})


def check_request(body: object, read: frozenset[str]) -> None:
    """Refuse the first key of a request that is not read and would change the answer.

    Args:
        body: the JSON of the request; anything but an object is left to the validation of its types.
        read: the keys that the endpoint reads.

    Raises:
        InvalidInput: names the key.
    """
    if isinstance(body, dict):
        _check(body, read, ignored=IGNORED, neutral=_NEUTRAL, place="")


def check_stream_options(body: object) -> None:
    """Do the same for `stream_options`, of which only `include_usage` is read.

    Raises:
        InvalidInput: names the key with its place.
    """
    options = body.get("stream_options") if isinstance(body, dict) else None
    if isinstance(options, dict):
        _check(
            options,
            frozenset({"include_usage"}),
            ignored=frozenset({"include_obfuscation"}),
            neutral={"continuous_usage_stats": (False,)},
            place="stream_options.",
        )


def check_messages(body: object) -> None:
    """Do the same for the messages of a conversation and for their parts.

    Raises:
        InvalidInput: names the key with its place, such as `messages[2].tool_calls`.
    """
    messages = body.get("messages") if isinstance(body, dict) else None
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        place = f"messages[{number}]."
        _check(
            message,
            frozenset({"role", "content"}),
            ignored=frozenset(),
            neutral=_NEUTRAL_IN_MESSAGE,
            place=place,
        )
        parts = message.get("content")
        for at, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, dict) and part.get("type") == "text":
                _check(
                    part,
                    frozenset({"type", "text"}),
                    ignored=_IGNORED_IN_PART,
                    neutral=_NEUTRAL_IN_PART,
                    place=f"{place}content[{at}].",
                )


def _check(
    values: Mapping[str, Any],
    read: frozenset[str],
    *,
    ignored: frozenset[str],
    neutral: Mapping[str, tuple[Any, ...]],
    place: str,
) -> None:
    for key, value in values.items():
        if value is None or key in read or key in ignored or value in neutral.get(key, ()):
            continue
        allowed = " or ".join(map(repr, neutral.get(key, ()))) or "no such key"
        raise InvalidInput(
            f"{place}{key[:80]}", got=_shown(value), allowed=f"{allowed}: this option is not supported"
        )


def _shown(value: object) -> object:
    if isinstance(value, bool | int | float):
        return value
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, dict | list) else "a text"
