"""Check generation requests against the model's limits, and encode their prompts.

Sits between the servicer, which reads the wire, and the engine, which trusts its input. Each check raises
InvalidInput with the field, what was received and what is allowed; texts are never quoted. Knows the
tokenizer, but not the wire format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairlead.data.chat import ROLES, Chat, Prompt
from fairlead.data.encoding import encode_prompt
from fairlead.errors import InvalidInput
from fairlead.types import GenerationRequest, Message, ModelInfo, SamplingParams
from services.runtime.limits import MAX_TURNS, check_count, check_temperature, check_text, check_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_STOP_STRINGS = 16
"""Limit on the stop strings of a request."""
MAX_STOP_STRING_BYTES = 1_024
"""Limit on the size of a stop string in UTF-8."""
MAX_STOP_TOKEN_IDS = 1_024
"""Limit on the stop token ids of a request."""
MAX_REQUEST_ID_BYTES = 256
"""Limit on the size of a request id."""
_TURNS_FIELD = "conversation.messages"


def check_request(request: GenerationRequest, model: ModelInfo, *, max_samples: int) -> None:
    """Check a whole request.

    Raises:
        InvalidInput: for the first value that is not allowed.
    """
    check_text("request_id", request.request_id, max_bytes=MAX_REQUEST_ID_BYTES)
    check_token_ids("tokens.token_ids", request.prompt_token_ids, vocabulary_size=model.vocabulary_size)
    longest = model.max_sequence_tokens - 1
    if len(request.prompt_token_ids) > longest:
        raise InvalidInput(
            "prompt",
            got=f"{len(request.prompt_token_ids)} tokens",
            allowed=f"at most {longest} tokens, to leave one for the completion",
        )
    check_count("num_samples", request.num_samples, limit=max_samples)
    check_sampling(request.sampling, vocabulary_size=model.vocabulary_size)
    version = request.min_version
    if version is not None and (version.incarnation < 0 or version.update < 0):
        raise InvalidInput(
            "min_version", got=str(version), allowed="an incarnation and an update of 0 or more"
        )


def check_sampling(sampling: SamplingParams, *, vocabulary_size: int) -> None:
    """Check the sampling parameters.

    Raises:
        InvalidInput: for the first value that is not allowed.
    """
    check_temperature("sampling.temperature", sampling.temperature, allow_zero=True)
    if not 0 < sampling.top_p <= 1:
        raise InvalidInput("sampling.top_p", got=sampling.top_p, allowed="greater than 0, at most 1")
    if sampling.top_k < 0:
        raise InvalidInput("sampling.top_k", got=sampling.top_k, allowed="0 (all tokens) or more")
    if sampling.max_new_tokens < 1:
        raise InvalidInput("sampling.max_new_tokens", got=sampling.max_new_tokens, allowed="1 or more")
    _check_length("sampling.stop_token_ids", len(sampling.stop_token_ids), MAX_STOP_TOKEN_IDS)
    check_token_ids(
        "sampling.stop_token_ids", sampling.stop_token_ids, vocabulary_size=vocabulary_size, allow_empty=True
    )
    _check_length("sampling.stop_strings", len(sampling.stop_strings), MAX_STOP_STRINGS)
    for index, text in enumerate(sampling.stop_strings):
        if not text:
            raise InvalidInput("sampling.stop_strings", index=index, got="", allowed="a non-empty text")
        check_text("sampling.stop_strings", text, max_bytes=MAX_STOP_STRING_BYTES, index=index)


def checked_chat(messages: Sequence[Message], *, max_bytes: int) -> Chat:
    """Return the turns of a conversation as a chat that a model can continue.

    Raises:
        InvalidInput: if there are no turns or too many, a role is unknown, the texts together are too large,
            or the last turn is the assistant's.
    """
    if not 1 <= len(messages) <= MAX_TURNS:
        raise InvalidInput(_TURNS_FIELD, got=f"{len(messages)} turns", allowed=f"from 1 to {MAX_TURNS}")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidInput(
                _TURNS_FIELD,
                index=index,
                got=f"role {message.role[:40]!r}",
                allowed=f"one of {', '.join(ROLES)}",
            )
    check_text(_TURNS_FIELD, "".join(message.content for message in messages), max_bytes=max_bytes)
    if messages[-1].role == "assistant":
        raise InvalidInput(
            _TURNS_FIELD,
            index=len(messages) - 1,
            got="a turn of the assistant",
            allowed="a last turn of another role",
        )
    return Chat(tuple(messages))


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt.

    A policy trained on plain prompts has no chat template; it takes a single turn of the user as a plain
    prompt.

    Raises:
        InvalidInput: if the chat template rejects the turns, or there is no template and the prompt is not a
            single turn of the user.
    """
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt)
    if not tokenizer.chat_template:
        if [turn.role for turn in prompt.messages] != ["user"] or not prompt.messages[0].content:
            raise InvalidInput(
                _TURNS_FIELD,
                got=f"turns of {', '.join(turn.role for turn in prompt.messages[:8])}",
                allowed="one non-empty turn of the user: this policy has no chat template",
            )
        return encode_prompt(tokenizer, prompt.messages[0].content)
    try:
        return encode_prompt(tokenizer, prompt)
    except InvalidInput as error:
        raise InvalidInput(_TURNS_FIELD, got=error.got, allowed=error.allowed) from error


def _check_length(field: str, length: int, limit: int) -> None:
    if length > limit:
        raise InvalidInput(field, got=f"{length} entries", allowed=f"at most {limit}")
