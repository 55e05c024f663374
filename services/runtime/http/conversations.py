"""A field of OpenAI's chat completions that both the gateway and the feedback service read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MetadataBody = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""Type of `metadata`: at most 16 pairs of texts, of at most 64 and 512 characters."""
