"""What a generation request may ask for, held against the model's limits.

Between the servicer, which reads the wire, and the engine, which trusts what it gets. Each check raises
InvalidInput with the field, what was got and what is allowed; texts are never quoted.
"""

from __future__ import annotations

from fairlead.errors import InvalidInput
from fairlead.types import GenerationRequest, ModelInfo, SamplingParams
from services.runtime.limits import check_count, check_temperature, check_text, check_token_ids

MAX_STOP_STRINGS = 16
"""Stop strings of one request."""
MAX_STOP_STRING_BYTES = 1_024
"""Size of each, in UTF-8."""
MAX_STOP_TOKEN_IDS = 1_024
"""Stop token ids of one request."""
MAX_REQUEST_ID_BYTES = 256
"""Size of a request's name."""


def check_request(request: GenerationRequest, model: ModelInfo, *, max_samples: int) -> None:
    """A whole request.

    Raises:
        InvalidInput: for the first thing that is not allowed.
    """
    check_text("request_id", request.request_id, max_bytes=MAX_REQUEST_ID_BYTES)
    check_token_ids("tokens.token_ids", request.prompt_token_ids, vocabulary_size=model.vocabulary_size)
    longest = model.max_sequence_tokens - 1
    if len(request.prompt_token_ids) > longest:
        raise InvalidInput(
            "prompt",
            got=f"{len(request.prompt_token_ids)} tokens",
            allowed=f"at most {longest} tokens, which leaves one for the answer",
        )
    check_count("num_samples", request.num_samples, limit=max_samples)
    check_sampling(request.sampling, vocabulary_size=model.vocabulary_size)
    version = request.min_version
    if version is not None and (version.incarnation < 0 or version.update < 0):
        raise InvalidInput("min_version", got=str(version), allowed="numbers from 0")


def check_sampling(sampling: SamplingParams, *, vocabulary_size: int) -> None:
    """How to sample.

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
    _check_number("sampling.stop_token_ids", len(sampling.stop_token_ids), MAX_STOP_TOKEN_IDS)
    check_token_ids(
        "sampling.stop_token_ids", sampling.stop_token_ids, vocabulary_size=vocabulary_size, allow_empty=True
    )
    _check_number("sampling.stop_strings", len(sampling.stop_strings), MAX_STOP_STRINGS)
    for index, text in enumerate(sampling.stop_strings):
        if not text:
            raise InvalidInput(
                "sampling.stop_strings", index=index, got="", allowed="a text that is not empty"
            )
        check_text("sampling.stop_strings", text, max_bytes=MAX_STOP_STRING_BYTES, index=index)


def _check_number(field: str, number: int, limit: int) -> None:
    if number > limit:
        raise InvalidInput(field, got=f"{number} entries", allowed=f"at most {limit}")
