"""Turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """What was said."""
