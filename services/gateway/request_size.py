"""The size of a score request as it is sent to the reward service, before it is built.

Every item of it has its own copy of the prompt, so a small body with one prompt and many responses can
become a large request.
"""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.errors import InvalidInput
from fairlead.types import ScoreItem, TextPair, TokenPair

_BYTES_PER_TURN = 128
"""Counted for each turn, besides its text: a request of many empty turns takes memory and time, too."""


def check_request_size(items: Sequence[ScoreItem], *, limit: int) -> None:
    """Check that a request is not larger than the service accepts; non-ASCII characters count as one byte.

    Raises:
        InvalidInput: it is larger.
    """
    size = 0
    turns: dict[int, int] = {}
    for item in items:
        if isinstance(item, TextPair):
            size += len(item.prompt) + len(item.response)
            if id(item.messages) not in turns:
                turns[id(item.messages)] = sum(len(one.content) + _BYTES_PER_TURN for one in item.messages)
            size += turns[id(item.messages)]
        elif isinstance(item, TokenPair):
            size += len(item.prompt_token_ids) + len(item.response_token_ids)
        else:
            size += len(item.text)
    if size > limit:
        raise InvalidInput(
            "request",
            got=f"{size} bytes, with the prompt of each response",
            allowed=f"at most {limit} bytes (server.max_message_bytes); send several requests",
        )
